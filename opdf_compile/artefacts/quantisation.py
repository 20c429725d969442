"""Which nodes of an ONNX graph quantise, and which constants hold what quantisation made.

Three ways of writing are in use. QDQ: the operators of ONNX between QuantizeLinear and
DequantizeLinear. QOperator: operators that compute on integers (QLinearConv, and ONNX Runtime's own
ones). Dynamic: activations get their scale while the graph runs (DynamicQuantizeLinear), or only
weights are stored in few bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opdf_compile.artefacts.onnx_graph import Constant, LinkedModel, Node
from opdf_compile.artefacts.onnx_nodes import graphs_in
from opdf_compile.artefacts.onnx_tensors import element_type

if TYPE_CHECKING:
    import onnx

_DYNAMIC = frozenset(
    {
        *("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat"),
        *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits"),
    }
)
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
# QLinearConv, QLinearAdd, and what ONNX Runtime has of that kind.
_BEGINNINGS = ("QLinear", "QGemm", "QAttention", "QEmbedLayerNorm", "QOrdered")
_SMALL = ("int8", "uint8", "int4", "uint4", "int2", "uint2", "int16", "uint16", "float8")


@dataclass(frozen=True)
class Quantisation:
    """How a graph is quantised.

    Attributes:
        form: "QDQ", "QOperator" or "dynamic".
        dtype: What its weights are stored in, such as "int8"; several are joined by "/".
    """

    form: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}, {self.form}"


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a node of the file quantises, at any depth; without linking the graph."""
    bodies = (node for function in model.functions for node in function.node)
    return any(map(_quantises, (*bodies, *_all_nodes(model.graph))))


def quantisation_of(view: LinkedModel) -> Quantisation | None:
    """How a linked graph is quantised; None where nothing in it is."""
    ops = {node.op for node in view.nodes if node.function is None and _quantises(node.proto)}
    if not ops:
        return None
    form = "dynamic" if ops & _DYNAMIC else "QDQ" if ops <= _QDQ else "QOperator"
    # Zero points have one element; biases are stored in int32.
    stored = {
        element_type(constant.dtype)
        for constant in quantisation_constants(view)
        if constant.shape and max(constant.shape) > 1
    }
    small = sorted(name for name in stored if name.startswith(_SMALL))
    return Quantisation(form, "/".join(small) or "int8")


def quantisation_constants(view: LinkedModel) -> Iterator[Constant]:
    """The scales, zero points and stored weights of a graph; one may come twice."""
    for node in view.nodes:
        for place, value in enumerate(node.inputs):
            if value.constant and value.input_of is None and _is_operand(node, place):
                yield value.constant


def is_stored_weight(node: Node) -> bool:
    """Whether a node only unpacks a constant: all that it reads are constants."""
    return node.op == "DequantizeLinear" and all(
        value.is_absent or (value.constant is not None and value.input_of is None)
        for value in node.inputs
    )


def _is_operand(node: Node, place: int) -> bool:
    if node.function is not None:
        return False  # A local function may have any name; its body tells.
    if _quantises(node.proto):
        # What is quantised here is a number of the model; the others say how.
        return node.op != "QuantizeLinear" or place > 0
    # The scale of a weight meets that of an activation, which is computed while the graph runs.
    other = node.inputs[1 - place] if node.op == "Mul" and len(node.inputs) == 2 else None
    made = None if other is None else other.node
    return made is not None and made.op == "DynamicQuantizeLinear"


def _quantises(node: onnx.NodeProto) -> bool:
    op = node.op_type
    return op in _QDQ or op in _DYNAMIC or op.startswith(_BEGINNINGS)


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in graphs_in(*node.attribute):
            yield from _all_nodes(inner)
