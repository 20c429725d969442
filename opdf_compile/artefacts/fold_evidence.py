"""What a folded file must no longer hold: kept in its check data, asked for by verify.

A file that was folded has other weights than the model it came from. The check data of a fold
therefore names each matrix that folding changed or removed, by a digest of its numbers, so that a
file whose fold was a stub is told from one that was folded, whatever its weights are called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opdf_compile.artefacts.onnx_tensors import element_type, fingerprint_of
from opdf_compile.errors import ArtefactError

if TYPE_CHECKING:
    import onnx

SCHEMA = "opdf-folded/1"
ENTRY = "folded"


@dataclass(frozen=True)
class FoldRecord:
    """What was folded.

    Attributes:
        by: "graph" or "method".
        untouched: By digest, the names of matrices that folding changed or removed.
    """

    by: str
    untouched: Mapping[str, str]

    def to_text(self) -> str:
        """The record as check data holds it."""
        value = {"schema": SCHEMA, "by": self.by, "untouched": dict(self.untouched)}
        return json.dumps(value)


def fold_record(by: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> FoldRecord:
    """Compare the arrays of a model before and after it was folded.

    Vectors are left out: two norms may hold the same numbers by chance, as two matrices that were
    trained do not. So are matrices that hold one number everywhere.

    Args:
        by: "graph" or "method".
        before: Arrays of the model as it was, by name.
        after: Arrays of the folded model.
    """
    kept = {digest for array in after.values() for digest in _digests(array)}
    found = {
        digest: name
        for name, array in before.items()
        if np.size(array) and np.ndim(array) > 1 and np.min(array) != np.max(array)
        for digest in _digests(array)
    }
    return FoldRecord(by, {d: name for d, name in found.items() if d not in kept})


def record_among(arrays: Mapping[str, Any], path: Path) -> FoldRecord | None:
    """The record among the arrays of check data; None where there is none.

    Raises:
        ArtefactError: It is damaged.
    """
    if ENTRY not in arrays:
        return None
    try:
        value = json.loads(str(arrays[ENTRY]))
        by, untouched = value["by"], value["untouched"]
        whole = value["schema"] == SCHEMA and all(
            isinstance(item, str) for item in (by, *untouched, *untouched.values())
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ArtefactError(
            f"{path} has a damaged record of what was folded (wanted {SCHEMA}); fold the model "
            "again"
        )
    return FoldRecord(by, untouched)


def held_of(record: FoldRecord, model: onnx.ModelProto, folder: str) -> list[str]:
    """Names of the untouched matrices that an ONNX file still holds, in the record's order."""
    present = {_text(fingerprint_of(tensor, folder)) for tensor in _matrices(model.graph)}
    return list(dict.fromkeys(n for d, n in record.untouched.items() if d in present))


def _matrices(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from (tensor for tensor in graph.initializer if len(tensor.dims) > 1)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "value" and len(attribute.t.dims) > 1:
                yield attribute.t


def _text(fingerprint: Hashable) -> str:
    if not isinstance(fingerprint, tuple) or not isinstance(fingerprint[0], int):
        return ""
    code, dims, digest = fingerprint[0], fingerprint[1], fingerprint[-1]
    return f"{element_type(code)}{list(dims)}:{digest.hex()}" if isinstance(digest, bytes) else ""


def _digests(array: Any) -> Iterator[str]:
    """Digests of a matrix as torch keeps it, and as a product with it reads it."""
    for turned in (array, np.swapaxes(array, -1, -2)) if np.ndim(array) == 2 else (array,):
        plain = np.ascontiguousarray(turned)
        sha = hashlib.sha256(plain.tobytes()).hexdigest()
        yield f"{plain.dtype.name}{list(plain.shape)}:{sha}"
