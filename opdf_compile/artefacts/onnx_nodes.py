"""What every reader of an ONNX graph must agree on: domains, operator sets, Constant nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_DEFAULT_DOMAINS = ("", "ai.onnx")


def plain_domain(domain: str) -> str:
    """Spell the default domain one way."""
    return "" if domain in _DEFAULT_DOMAINS else domain


def opsets_of(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Operator set version by domain."""
    return {plain_domain(entry.domain): entry.version for entry in imports}


def graphs_in(*attributes: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that attributes hold."""
    for attribute in attributes:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def constant_of(node: onnx.NodeProto) -> onnx.TensorProto | onnx.SparseTensorProto | None:
    """The tensor that a Constant node makes from its one attribute.

    Returns:
        None for any other node, and for a Constant whose attribute a function's caller fills in.
    """
    from onnx import TensorProto, helper

    if node.op_type != "Constant" or plain_domain(node.domain) or len(node.output) != 1:
        return None
    if len(node.attribute) != 1 or node.attribute[0].ref_attr_name:
        return None
    attribute: onnx.AttributeProto = node.attribute[0]
    if attribute.name == "value":
        return attribute.t
    if attribute.name == "sparse_value":
        return attribute.sparse_tensor
    forms: dict[str, tuple[int, list[Any], list[int]]] = {
        "value_float": (TensorProto.FLOAT, [attribute.f], []),
        "value_int": (TensorProto.INT64, [attribute.i], []),
        "value_string": (TensorProto.STRING, [attribute.s], []),
        "value_floats": (TensorProto.FLOAT, list(attribute.floats), [len(attribute.floats)]),
        "value_ints": (TensorProto.INT64, list(attribute.ints), [len(attribute.ints)]),
        "value_strings": (TensorProto.STRING, list(attribute.strings), [len(attribute.strings)]),
    }
    if attribute.name not in forms:
        return None
    dtype, content, dims = forms[attribute.name]
    return helper.make_tensor("", dtype, dims, content)
