"""Which operators read a weight as a matrix, and which only look at it from another side.

op                              weight operand   matrix rows
linear(x, W, b)                 args[1]          W rows (out_features)
conv*(x, W, ...)                args[1]          W.shape[0]; columns I/g * prod(kernel)
conv_transpose*(x, W, ...)      args[1]          W.shape[0] (in channels); the rest as columns
addmm(b, x, W), mm(x, W)        last operand     W columns (out_features): `transposed`
mm(W, x)                        args[0]          W rows
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class WeightOperand:
    """Where an operator takes its weight.

    Attributes:
        index: Position among the operator's arguments.
        name: Keyword of that argument.
        convolution: Whether the axes after the second are a kernel.
        transposed: Whether the operand's columns, not its rows, are the out features.
        other: Position of the operand that the weight multiplies.
    """

    index: int
    name: str
    convolution: bool = False
    transposed: bool = False
    other: int = 0


_LINEAR = WeightOperand(1, "weight")
_CONV = WeightOperand(1, "weight", convolution=True)
_RIGHT = WeightOperand(1, "mat2", transposed=True)
_LEFT = WeightOperand(0, "self", other=1)

WEIGHT_OPS: dict[Any, tuple[WeightOperand, ...]] = {
    aten.linear.default: (_LINEAR,),
    aten.addmm.default: (
        WeightOperand(2, "mat2", transposed=True, other=1),
        WeightOperand(1, "mat1", other=2),
    ),
    aten.mm.default: (_RIGHT, _LEFT),
    aten.matmul.default: (WeightOperand(1, "other", transposed=True), _LEFT),
    **dict.fromkeys(
        (
            aten.conv1d.default,
            aten.conv1d.padding,
            aten.conv2d.default,
            aten.conv2d.padding,
            aten.conv3d.default,
            aten.conv3d.padding,
            aten.conv_transpose1d.default,
            aten.conv_transpose2d.input,
            aten.conv_transpose3d.input,
            aten.convolution.default,
            aten._convolution.default,
        ),
        (_CONV,),
    ),
}

# Products that are also written between two weights (low-rank updates, cores): no layer there.
PRODUCTS = frozenset({aten.addmm.default, aten.mm.default, aten.matmul.default})
NO_INPUT = "is multiplied with another weight, not with an input"

STACKED = "is a stack of matrices in a batched product, not one matrix"


def _overloads(name: str) -> list[Any]:
    """The overloads of an operator that not every supported torch has."""
    packet = getattr(aten, name, None)
    return [getattr(packet, o) for o in packet.overloads()] if packet is not None else []


# Operators that hold matrices which no parametrization here can replace, with the reason.
REFUSED_OPS: dict[Any, str] = {
    **dict.fromkeys(
        (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input),
        "is a recurrent weight: the fused kernel wants its weights in one flat buffer",
    ),
    **dict.fromkeys(
        (aten.bmm.default, aten.baddbmm.default, aten.einsum.default, aten.bilinear.default),
        STACKED,
    ),
    **{op: STACKED for name in ("_grouped_mm", "_scaled_grouped_mm") for op in _overloads(name)},
}

# Views that keep the weight's numbers; the value says whether rows and columns change places.
VIEW_OPS: dict[Any, bool] = {
    aten.t.default: True,
    aten.numpy_T.default: True,
    aten.transpose.int: True,
    aten.permute.default: True,
    **dict.fromkeys(
        (
            aten.to.dtype,
            aten.to.dtype_layout,
            aten.to.device,
            aten._to_copy.default,
            aten.contiguous.default,
            aten.clone.default,
            aten.alias.default,
            aten.view.default,
            aten.reshape.default,
            aten.slice.Tensor,
            aten.narrow.default,
            aten.select.int,
            aten.split.Tensor,
            aten.split_with_sizes.default,
            aten.chunk.default,
            aten.unbind.int,
            aten.squeeze.dim,
            aten.unsqueeze.default,
        ),
        False,
    ),
}

LOOKUP_OPS = frozenset({aten.embedding.default, aten.embedding_bag.padding_idx})


# transformers.grouped_mm_fallback, quantised kernels, conv_tbc: products by their name.
_PRODUCT_LIKE = re.compile(r"(?:^|_)(?:b?mm|mv|matmul|linear|gemm|conv\w*)(?:_|$)")


def refused_op(node: Node) -> str | None:
    """Why no weight of this op can be replaced, or None: it is no product, or one we know."""
    if node.target in REFUSED_OPS:
        return REFUSED_OPS[node.target]
    if node.target in WEIGHT_OPS or node.op != "call_function":
        return None
    packet = getattr(node.target, "overloadpacket", None)
    if packet is None or not _PRODUCT_LIKE.search(packet.__name__):
        return None
    return f"is read by {node.target}, a product that this tool does not rewrite"


def operand(node: Node, where: WeightOperand) -> Any:
    """The argument of `node` at `where`, given by position or by keyword."""
    if len(node.args) > where.index:
        return node.args[where.index]
    return node.kwargs.get(where.name)


def operand_beside(node: Node, where: WeightOperand) -> Any:
    """What the weight multiplies, or None if it is given by keyword."""
    return node.args[where.other] if len(node.args) > where.other else None


def swaps(node: Node) -> bool:
    """Whether a view exchanges the two axes of a matrix."""
    if not VIEW_OPS.get(node.target, False):
        return False
    if node.target is aten.permute.default:
        order = node.args[1]
        return isinstance(order, list | tuple) and list(order) == [1, 0]
    return True
