"""What export knew of a file and the file itself may lose: kept in its check data.

A tool that rewrites a file may drop its metadata. Which constants are parameters, and which weights
a plan over-parameterised, then stands beside the samples, as UTF-8 text in an array of bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opdf_compile.artefacts.fold_evidence import FoldRecord, record_among
from opdf_compile.errors import ArtefactError
from opdf_compile.files import DAMAGE, read_npz

FACTS = "export"
_SCHEMA = "opdf-export-facts/1"


@dataclass(frozen=True)
class ExportFacts:
    """Names, as they were in the file.

    Attributes:
        parameters: Constants that are parameters of the model; empty where nobody said.
        planned: Weights that a plan over-parameterised; empty without a plan.
    """

    parameters: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()

    def to_array(self) -> Any:
        """The facts as check data holds them."""
        value = {"schema": _SCHEMA, "parameters": self.parameters, "planned": self.planned}
        return np.frombuffer(json.dumps(value).encode(), np.uint8)


def facts_among(arrays: Mapping[str, Any], path: Path) -> ExportFacts:
    """The facts among the arrays of check data; empty where there are none.

    Raises:
        ArtefactError: They are damaged.
    """
    if FACTS not in arrays:
        return ExportFacts()
    try:
        value = json.loads(arrays[FACTS].tobytes())
        names = value["parameters"], value["planned"]
        whole = value["schema"] == _SCHEMA and all(
            isinstance(each, list) and all(isinstance(name, str) for name in each) for each in names
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ArtefactError(
            f"{path} has a damaged record of its export (wanted {_SCHEMA}); export the model again"
        )
    return ExportFacts(*map(tuple, names))


def read_claims(path: Path) -> tuple[FoldRecord | None, ExportFacts]:
    """What check data says of a fold and of the export, without its samples.

    Raises:
        ArtefactError: A record is damaged.
    """
    try:
        arrays = read_npz(path)
    except DAMAGE:
        return None, ExportFacts()  # Numerics says what is wrong with the file.
    return record_among(arrays, path), facts_among(arrays, path)
