"""An exported file's own record: who wrote it, and which of its constants are parameters.

    opdf.parameters            ["opdf.export.*"]      the same in every file: where the names are
    opdf.export.1f0c6b8a52d3   {"exporter": ..., "version": ..., "parameters": ["fc.weight", ...]}
    opdf.plan.5d0e1f9b7c24     ["fc.weight", ...]    weights that a plan over-parameterised, if any

`onnx.compose.merge_models` refuses two files that give one key different values, so whatever may
differ has a key made of its content. A merged file has the entries of both parts; where names got a
prefix, a record holds under every prefix with which all its names are there. In a file of 0.1 the
names are under `opdf.parameters` itself, the exporter and version under keys of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opdf_compile.artefacts.onnx_nodes import graphs_in
from opdf_compile.errors import ArtefactError
from opdf_compile.version import __version__

if TYPE_CHECKING:
    import onnx

RECORD, EXPORT = "opdf.parameters", "opdf.export."
_CLAIM = "opdf.plan."
_POINTER = f"{EXPORT}*"
_OLD = {"exporter": "opdf.exporter", "version": "opdf.version"}


def record_of(parameters: Sequence[str], exporter: str | None = None) -> dict[str, str]:
    """The entries of metadata for a file.

    Args:
        parameters: Names of the constants that training moves.
        exporter: What translated the model; None for a file that came as ONNX.
    """
    content: dict[str, Any] = {"version": __version__, "parameters": list(parameters)}
    if exporter is not None:
        content["exporter"] = exporter
    text = json.dumps(content, sort_keys=True)
    key = EXPORT + hashlib.sha256(text.encode()).hexdigest()[:12]
    return {RECORD: json.dumps([_POINTER]), key: text}


def claim_of(planned: Sequence[str]) -> dict[str, str]:
    """The entry of metadata that says which weights a plan over-parameterised."""
    text = json.dumps(list(planned))
    return {_CLAIM + hashlib.sha256(text.encode()).hexdigest()[:12]: text} if planned else {}


def claimed_weights(model: onnx.ModelProto) -> frozenset[str]:
    """The weights that a file's metadata says a plan over-parameterised; none without it."""
    lists = (_parsed(text) for key, text in _metadata(model).items() if key.startswith(_CLAIM))
    names = (name for value in lists if isinstance(value, list) for name in value)
    return frozenset(name for name in names if isinstance(name, str))


def replace_record(model: onnx.ModelProto, parameters: Sequence[str]) -> None:
    """Put another record in the place of a file's own; its exporter stays named.

    Args:
        model: Changed in place.
        parameters: Names of the constants that training moved.
    """
    metadata = _metadata(model)
    entries = record_of(parameters, exporter_of(metadata))
    own = (RECORD, *_OLD.values())
    # What was planned for the file's former weights is no claim about the new ones.
    ours = (EXPORT, _CLAIM)
    kept = {k: text for k, text in metadata.items() if k not in own and not k.startswith(ours)}
    del model.metadata_props[:]
    for key, text in (kept | entries).items():
        model.metadata_props.add(key=key, value=text)


def exporter_of(metadata: Mapping[str, str]) -> str | None:
    """What translated a model of ours, as "torch.onnx 2.13.0"; both parts' of a merged file."""
    return _said(metadata, "exporter")


def version_of(metadata: Mapping[str, str]) -> str | None:
    """The version of opdf-compile that wrote a file."""
    return _said(metadata, "version")


def recorded_parameters(model: onnx.ModelProto, name: str) -> frozenset[str] | None:
    """Read the names of parameters that were recorded; None without a record.

    Raises:
        ArtefactError: A record is damaged.
    """
    known = _known(_metadata(model), name)
    if not known:
        return None
    present = frozenset(_constants(model.graph))
    computed = [output for node in model.graph.node for output in node.output]
    return frozenset(
        prefix + name
        for names in known
        for prefix in _prefixes(names, present, computed)
        for name in names
    )


def listed_parameters(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The names in the metadata of a model that no other tool has touched; none without a record.

    Raises:
        ArtefactError: A record is damaged.
    """
    return tuple(name for names in _known(metadata, "the model") for name in names)


def _known(metadata: Mapping[str, str], name: str) -> list[list[str]]:
    lists = (_names(key, text, name) for key, text in metadata.items() if _is_list(key))
    return [names for names in lists if names is not None]


def _names(key: str, text: str, name: str) -> list[str] | None:
    """The names of one entry; None where it says that they are elsewhere."""
    value = _parsed(text)
    if key != RECORD:
        value = value.get("parameters") if isinstance(value, dict) else None
    if not isinstance(value, list) or not all(isinstance(n, str) for n in value):
        raise ArtefactError(
            f"{name} has a damaged record of parameters in its metadata ({key} is no JSON list "
            "of names); export it again"
        )
    return None if key == RECORD and value == [_POINTER] else value


def _prefixes(names: list[str], present: frozenset[str], computed: list[str]) -> list[str]:
    """The prefixes under which all names are there; none where some are not.

    A prefix of a merged part stands before its computed values too: a constant whose name happens
    to end like a parameter's is not taken for one.
    """
    first = names[0] if names else ""
    found = {constant.removesuffix(first) for constant in present if constant.endswith(first)}
    whole = [p for p in sorted(found) if first and all(p + name in present for name in names)]
    return [p for p in whole if any(value.startswith(p) for value in computed)] or [""]


def _constants(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of the initialisers and Constant nodes of a graph and those nested in it."""
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant":
            yield from node.output
        for inner in graphs_in(*node.attribute):
            yield from _constants(inner)


def _said(metadata: Mapping[str, str], what: str) -> str | None:
    records = [_parsed(text) for key, text in metadata.items() if key.startswith(EXPORT)]
    said: Iterable[Any] = (r.get(what) for r in records if isinstance(r, dict))
    found = {text for text in said if isinstance(text, str)}
    return ", ".join(sorted(found)) or metadata.get(_OLD[what])


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_list(key: str) -> bool:
    return key == RECORD or key.startswith(EXPORT)


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}
