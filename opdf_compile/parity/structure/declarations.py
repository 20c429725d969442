"""Inputs, outputs and operator sets of two models: the part of the graph that users name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from opdf_compile.artefacts import Graph, LinkedModel, declared_axis, element_type
from opdf_compile.parity.structure.canonical import same_constant
from opdf_compile.parity.structure.differences import Difference

if TYPE_CHECKING:
    import onnx


def compare_interfaces(candidate: LinkedModel, reference: LinkedModel) -> list[Difference]:
    """Compare names, dtypes and shapes of graph inputs and outputs, in order.

    Names of symbolic axes may differ if one renaming explains all of them.
    """
    symbols = _Renaming()
    # Old files list their initialisers as inputs too; linking has sorted that out.
    ours, theirs = (
        [info for info in view.proto.graph.input if info.name in {v.name for v in view.main.inputs}]
        for view in (candidate, reference)
    )
    outputs = (candidate.proto.graph.output, reference.proto.graph.output)
    return [
        *_compare_infos("input", ours, theirs, symbols),
        *_compare_infos("output", *outputs, symbols),
        *_compare_defaults(candidate.main, reference.main),
    ]


def compare_opsets(candidate: LinkedModel, reference: LinkedModel) -> list[Difference]:
    """Compare the operator set versions of every domain that the graphs use."""
    differences = []
    # A file imports more domains than it uses; another exporter's list may be longer.
    used = {""} | _domains(candidate) | _domains(reference)
    for domain in sorted(used):
        versions = [view.main.opsets.get(domain, 0) for view in (candidate, reference)]
        if versions[0] != versions[1]:
            name = domain or "ai.onnx"
            differences.append(
                Difference(
                    "opset",
                    (name, name),
                    f"the candidate uses operator set {versions[0]} of {name}, "
                    f"the reference {versions[1]}",
                )
            )
    return differences


def compare_function_opsets(candidate: Graph, reference: Graph) -> bool:
    """Whether two function bodies read the operators that they use from equal sets."""
    domains = {n.domain for s in (candidate, reference) for n in s.nodes}
    return all(candidate.opsets.get(d) == reference.opsets.get(d) for d in domains)


def _domains(view: LinkedModel) -> set[str]:
    return {
        node.domain
        for node in view.nodes
        if node.function is None and node.graph.opsets is view.main.opsets
    }


def _compare_defaults(candidate: Graph, reference: Graph) -> Iterable[Difference]:
    """Compare the values that inputs have when the caller leaves them out."""
    for c, r in zip(candidate.inputs, reference.inputs, strict=False):
        if (c.constant is None) != (r.constant is None):
            side = "candidate" if c.constant else "reference"
            sentence = f"input {c.name!r} has a default in the {side} only"
        elif c.constant and r.constant and not same_constant(c.constant, r.constant):
            sentence = f"the default of input {c.name!r} differs ({c.constant}; {r.constant})"
        else:
            continue
        yield Difference("interface", (c.name, r.name), sentence)


class _Renaming:
    """A one-to-one renaming of symbolic axes that grows as axes are met."""

    def __init__(self) -> None:
        self.forward: dict[str, str] = {}
        self.backward: dict[str, str] = {}

    def agrees(self, candidate: str, reference: str) -> bool:
        return (
            self.forward.setdefault(candidate, reference) == reference
            and self.backward.setdefault(reference, candidate) == candidate
        )


def _compare_infos(
    what: str,
    candidate: Sequence[onnx.ValueInfoProto],
    reference: Sequence[onnx.ValueInfoProto],
    symbols: _Renaming,
) -> Iterable[Difference]:
    names = [[info.name for info in infos] for infos in (candidate, reference)]
    if len(candidate) != len(reference):
        yield Difference(
            "interface",
            (", ".join(names[0]), ", ".join(names[1])),
            f"the candidate has {len(candidate)} {what}s {names[0]}, "
            f"the reference {len(reference)} {names[1]}",
        )
        return
    for c, r in zip(candidate, reference, strict=True):
        if c.name != r.name:
            sentence = f"{what} {c.name!r} of the candidate is {r.name!r} in the reference"
            yield Difference("interface", (c.name, r.name), sentence)
        elif not _same_type(c.type, r.type, symbols):
            sentence = (
                f"{what} {c.name!r} is {_show_type(c.type)} in the candidate and "
                f"{_show_type(r.type)} in the reference"
            )
            yield Difference("interface", (c.name, r.name), sentence)


def _same_type(c: onnx.TypeProto, r: onnx.TypeProto, symbols: _Renaming) -> bool:
    kind = c.WhichOneof("value")
    if kind != r.WhichOneof("value"):
        return False
    if kind in ("tensor_type", "sparse_tensor_type"):
        return _same_tensor(getattr(c, kind), getattr(r, kind), symbols)
    if kind in ("sequence_type", "optional_type"):
        return _same_type(getattr(c, kind).elem_type, getattr(r, kind).elem_type, symbols)
    if kind == "map_type":
        keys = bool(c.map_type.key_type == r.map_type.key_type)
        return keys and _same_type(c.map_type.value_type, r.map_type.value_type, symbols)
    return bool(c.SerializeToString(deterministic=True) == r.SerializeToString(deterministic=True))


def _same_tensor(c: onnx.TypeProto.Tensor, r: onnx.TypeProto.Tensor, symbols: _Renaming) -> bool:
    if c.elem_type != r.elem_type or c.HasField("shape") != r.HasField("shape"):
        return False
    if len(c.shape.dim) != len(r.shape.dim):
        return False
    return all(_same_axis(a, b, symbols) for a, b in zip(c.shape.dim, r.shape.dim, strict=True))


def _same_axis(
    a: onnx.TensorShapeProto.Dimension, b: onnx.TensorShapeProto.Dimension, symbols: _Renaming
) -> bool:
    # An empty name means the same as no name: an axis about which nothing is said.
    if a.dim_param and b.dim_param:
        return symbols.agrees(a.dim_param, b.dim_param)
    return declared_axis(a) == declared_axis(b)


def _show_type(value: onnx.TypeProto) -> str:
    if value.WhichOneof("value") != "tensor_type":
        return str(value.WhichOneof("value"))
    tensor = value.tensor_type
    if not tensor.HasField("shape"):
        return f"{element_type(tensor.elem_type)} of any shape"
    axes = ", ".join(str(declared_axis(dim)) or "?" for dim in tensor.shape.dim)
    return f"{element_type(tensor.elem_type)}[{axes}]"
