"""What differs between two ONNX files and changes nothing that they compute, or only numbers.

The walk looks past all of it. Names and order are told of the nodes that have a partner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opdf_compile.artefacts import Constant, LinkedModel, Node
from opdf_compile.parity.structure.canonical import called_operator
from opdf_compile.parity.structure.compare import StructureResult

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Cosmetic:
    """A difference without a meaning: what it is about, and what each file has there."""

    what: str
    candidate: str
    reference: str


@dataclass(frozen=True)
class OtherValues:
    """Parameters of equal dtype and shape that may hold other numbers.

    Attributes:
        parameters: How many pairs of parameters the two graphs read in the same places.
        other: Names in the candidate of those whose bits differ.
    """

    parameters: int
    other: tuple[str, ...]


def cosmetic_differences(found: StructureResult, values: OtherValues) -> tuple[Cosmetic, ...]:
    """All that is told apart from what the structure judge compares."""
    views = (found.candidate, found.reference)
    rows = [*_names(found), *_storage(*views), *_about(*(view.proto for view in views))]
    if not rows and not found.differences and not values.other:
        ours, theirs = (_digest(view.proto) for view in views)
        if ours != theirs:
            rows.append(("other ways of writing", ours, theirs))
    return tuple(Cosmetic(*row) for row in rows)


def other_values(found: StructureResult) -> OtherValues:
    """Compare the bits of the parameters that matched nodes read."""
    pairs = dict.fromkeys(_parameters(found))
    # A parameter that stands for several of the other file differs if it differs from one.
    other = [ours for ours, theirs in pairs if ours.fingerprint != theirs.fingerprint]
    names = tuple(dict.fromkeys(constant.name for constant in other))
    return OtherValues(len({ours for ours, _theirs in pairs}), names)


def _parameters(found: StructureResult) -> Iterator[tuple[Constant, Constant]]:
    for ours, theirs in found.walk.nodes.items():
        for c, r in zip(ours.inputs, theirs.inputs, strict=False):
            if c.constant and r.constant and c.constant.parameter and r.constant.parameter:
                yield c.constant, r.constant


def _names(found: StructureResult) -> Iterator[tuple[str, str, str]]:
    # The walk also pairs the two nodes of a difference, whose names are no matter of writing.
    walked = found.walk.nodes.items()
    pairs = {c: r for c, r in walked if called_operator(c) == called_operator(r)}
    renamed = [(c, r) for c, r in pairs.items() if c.proto.name != r.proto.name]
    if renamed:
        yield _some("names of nodes", len(renamed), len(pairs), *map(_name, renamed[0]))
    outputs = [
        (c.name, r.name)
        for ours, theirs in pairs.items()
        for c, r in zip(ours.outputs, theirs.outputs, strict=False)
        if not (c.output_of or r.output_of)
    ]
    other = [pair for pair in outputs if pair[0] != pair[1]]
    if other:
        yield _some("names of values", len(other), len(outputs), *map(repr, other[0]))
    spelled = [(c, r) for c, r in pairs.items() if _spelled(c) != _spelled(r)]
    if spelled:
        ours, theirs = (" ".join(_spelled(node)) or "none" for node in spelled[0])
        yield _some("attributes as written", len(spelled), len(pairs), ours, theirs)
    moved = _moved(pairs, found.reference)
    if moved is not None:
        yield "order of nodes", f"{moved[0]} comes first", f"{moved[1]} comes first"


def _some(what: str, count: int, of: int, ours: str, theirs: str) -> tuple[str, str, str]:
    return f"{what} ({count} of {of})", f"{ours}, ..", f"{theirs}, .."


def _name(node: Node) -> str:
    return repr(node.proto.name)


def _spelled(node: Node) -> list[str]:
    """Names of attributes and functions and places of inputs, as the file writes them."""
    called = [node.op] if node.function is not None else []
    return [*called, *(a.name for a in node.proto.attribute), f"({len(node.proto.input)} inputs)"]


def _moved(pairs: dict[Node, Node], reference: LinkedModel) -> tuple[Node, Node] | None:
    """Two nodes that the files list in another order: what the candidate has first, and second."""
    place = {node: number for number, node in enumerate(reference.nodes)}
    last: dict[object, Node] = {}
    # In the order of the candidate's file, which is that of its graphs' lists.
    graphs = dict.fromkeys(ours.graph for ours in pairs)
    for graph in graphs:
        for ours in graph.nodes:
            theirs = pairs.get(ours)
            if theirs is None:
                continue
            before = last.get(theirs.graph)
            if before is not None and place[before] > place[theirs]:
                return before, theirs
            last[theirs.graph] = theirs
    return None


def _storage(candidate: LinkedModel, reference: LinkedModel) -> Iterator[tuple[str, str, str]]:
    """How the same constants are stored."""
    counts = [_stored(view.proto) for view in (candidate, reference)]
    for what in counts[0]:
        ours, theirs = (count[what] for count in counts)
        if ours != theirs:
            yield what, str(ours), str(theirs)


def _stored(model: onnx.ModelProto) -> dict[str, int]:
    import onnx

    initialisers = model.graph.initializer
    outside = (t.data_location == onnx.TensorProto.EXTERNAL for t in initialisers)
    return {
        "initialisers": len(initialisers),
        "Constant nodes": sum(node.op_type == "Constant" for node in model.graph.node),
        "initialisers in another file": sum(outside),
    }


def _about(ours: onnx.ModelProto, theirs: onnx.ModelProto) -> Iterator[tuple[str, str, str]]:
    """What the files say about themselves."""
    for what, say in _SAID.items():
        left, right = say(ours), say(theirs)
        if left != right:
            yield what, left, right
    left, right = _entries(ours.metadata_props, theirs.metadata_props)
    if left or right:
        yield "metadata", left, right


def _sets(model: onnx.ModelProto) -> str:
    return _listed(f"{opset.domain or 'ai.onnx'} {opset.version}" for opset in model.opset_import)


def _axes(model: onnx.ModelProto) -> set[str]:
    ports = (*model.graph.input, *model.graph.output)
    return {d.dim_param for p in ports for d in p.type.tensor_type.shape.dim if d.dim_param}


def _digest(model: onnx.ModelProto) -> str:
    written = model.SerializeToString(deterministic=True)
    return f"SHA-256 {hashlib.sha256(written).hexdigest()[:12]}.."


def _documented(model: onnx.ModelProto) -> int:
    parts = (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output)
    return sum(bool(part.doc_string) for part in parts)


def _annotated(model: onnx.ModelProto) -> int:
    return sum(bool(node.metadata_props) for node in model.graph.node)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))


def _entries(
    ours: Iterable[onnx.StringStringEntryProto], theirs: Iterable[onnx.StringStringEntryProto]
) -> tuple[str, str]:
    """The keys that only one has, or whose values differ."""
    left, right = ({e.key: e.value for e in entries} for entries in (ours, theirs))
    odd = [key for key in {**left, **right} if left.get(key) != right.get(key)]
    sides = ([key for key in odd if key in side] for side in (left, right))
    mine, other = (_listed(keys) for keys in sides)
    # Both may name the same keys, with other values.
    return (mine, other) if mine != other or not odd else (mine, f"{other} (other values)")


_SAID: dict[str, Callable[[onnx.ModelProto], str]] = {
    "IR version": lambda m: str(m.ir_version),
    "producer": lambda m: f"{m.producer_name} {m.producer_version}".strip(),
    "name of the graph": lambda m: str(m.graph.name),
    "version of the model": lambda m: str(m.model_version),
    "domain of the model": lambda m: str(m.domain),
    "doc strings": lambda m: str(_documented(m)),
    "annotated values": lambda m: str(len(m.graph.value_info)),
    "names of axes": lambda m: _listed(_axes(m)),
    "operator sets": _sets,
    "metadata of nodes": lambda m: str(_annotated(m)),
}
