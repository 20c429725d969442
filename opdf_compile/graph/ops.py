"""Which operators read a weight as a matrix, and which of its axes are rows and columns.

The axes of a weight operand are labelled

    o   out: in the weight and in the result        i   in: summed with an axis of the input
    k   kernel of a convolution                     b   batch: in weight, input and result

layer (takes its weight at a fixed place)         product (either operand may be the weight)
    linear(x, W, b)                  oi               mm(x, W), addmm(b, x, W), matmul(x, W)    io
    conv*(x, W, ...)                 oik..            mm(W, x), matmul(W, x), mv(W, x)          oi
    conv_transpose*(x, W, ...)       iok..            bmm, baddbmm: the same after one b
    conv_tbc(x, W, b)                kio              einsum, tensordot: see `equations`
    lstm_cell(x, h, W_ih, W_hh)      oi               grouped_mm(x, W)                          bio
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.fx import Node

from opdf_compile.graph.convolution import CONVOLUTIONS

aten = torch.ops.aten


@dataclass(frozen=True)
class OperandPlace:
    """Where an operator takes a weight.

    Attributes:
        index: Position among the operator's arguments.
        name: Keyword of that argument.
        axes: Labels of the operand's axes. A last "*" repeats the label before it; without it, axes
            in front of the labels are batch axes.
    """

    index: int
    name: str
    axes: str

    def labels(self, axes: int) -> str:
        """The label of each axis of an operand with so many axes."""
        if self.axes.endswith("*"):
            known = self.axes[:-1]
            return (known + known[-1] * axes)[:axes]
        if axes == 1:
            return "i"
        return "b" * (axes - len(self.axes)) + self.axes[-axes:]


_LINEAR = (OperandPlace(1, "weight", "oi"),)
_CONV = (OperandPlace(1, "weight", "oik*"),)
_CONV_TRANSPOSE = (OperandPlace(1, "weight", "iok*"),)
_CELL = (OperandPlace(2, "w_ih", "oi"), OperandPlace(3, "w_hh", "oi"))

LAYERS: dict[Any, tuple[OperandPlace, ...]] = {
    aten.linear.default: _LINEAR,
    **dict.fromkeys(
        (
            *CONVOLUTIONS,
            aten.convolution.default,
            aten._convolution.default,
        ),
        _CONV,
    ),
    **dict.fromkeys(
        (
            aten.conv_transpose1d.default,
            aten.conv_transpose2d.input,
            aten.conv_transpose3d.input,
        ),
        _CONV_TRANSPOSE,
    ),
    aten.conv_tbc.default: (OperandPlace(1, "weight", "kio"),),
    **dict.fromkeys(
        (
            aten.lstm_cell.default,
            aten.gru_cell.default,
            aten.rnn_tanh_cell.default,
            aten.rnn_relu_cell.default,
        ),
        _CELL,
    ),
    aten._native_multi_head_attention.default: (
        OperandPlace(5, "qkv_weight", "oi"),
        OperandPlace(7, "proj_weight", "oi"),
    ),
    aten._transformer_encoder_layer_fwd.default: (
        OperandPlace(3, "qkv_weight", "oi"),
        OperandPlace(5, "proj_weight", "oi"),
        OperandPlace(14, "ffn_weight_1", "oi"),
        OperandPlace(16, "ffn_weight_2", "oi"),
    ),
}

PRODUCTS: dict[Any, tuple[OperandPlace, ...]] = {
    aten.mm.default: (OperandPlace(1, "mat2", "io"), OperandPlace(0, "self", "oi")),
    aten.matmul.default: (OperandPlace(1, "other", "io"), OperandPlace(0, "self", "oi")),
    aten.addmm.default: (OperandPlace(2, "mat2", "io"), OperandPlace(1, "mat1", "oi")),
    aten.bmm.default: (OperandPlace(1, "mat2", "io"), OperandPlace(0, "self", "oi")),
    aten.baddbmm.default: (OperandPlace(2, "batch2", "io"), OperandPlace(1, "batch1", "oi")),
    # The batch is summed: with the columns it makes one long axis.
    aten.addbmm.default: (OperandPlace(2, "batch2", "iio"), OperandPlace(1, "batch1", "ioi")),
    aten.mv.default: (OperandPlace(0, "self", "oi"), OperandPlace(1, "vec", "i")),
    aten.addmv.default: (OperandPlace(1, "mat", "oi"), OperandPlace(2, "vec", "i")),
    aten.inner.default: (OperandPlace(1, "other", "o*"), OperandPlace(0, "self", "o*")),
}

# Products whose operands come as one list.
CHAINS = frozenset({aten.chain_matmul.default, aten.linalg_multi_dot.default})


def _overloads(packet: Any) -> list[Any]:
    """The overloads of an operator that not every supported torch has."""
    return [getattr(packet, o) for o in packet.overloads()] if packet is not None else []


PRODUCTS |= {
    op: (OperandPlace(1, "mat2", "bio"), OperandPlace(0, "self", "oi"))
    for name in ("_grouped_mm", "_scaled_grouped_mm")
    for op in _overloads(getattr(aten, name, None))
}
# By name: the library that defines it may not be imported when this file is.
_GROUPED = "transformers.grouped_mm_fallback.default"

FUSED_RECURRENT = "is a recurrent weight: the fused kernel wants its weights in one flat buffer"
BILINEAR = "is a stack of bilinear forms: two inputs meet in it, so it is no map from in to out"
NO_INPUT = "is multiplied with another weight, not with an input"
NOT_DENSE = "has dtype {}, only dense floating-point weights are factorised"
FROZEN = "is frozen (requires_grad=False): extra parameters would not be trained"
TIED = (
    "is tied to an embedding of {} rows: cores would cost a product over the whole vocabulary in "
    "every step (include= takes it all the same)"
)
LOOKUP = "is a lookup table, not a matrix factor"
FUNCTION = (
    "reaches {} through {}, a function of the whole matrix: what its factors are, the weight's "
    "are not (include= takes it all the same)"
)

# Operators that hold matrices which no parametrization here can replace, with the reason.
REFUSED_OPS: dict[Any, str] = {
    **dict.fromkeys(
        (
            aten.lstm.input,
            aten.lstm.data,
            aten.gru.input,
            aten.gru.data,
            aten.rnn_tanh.input,
            aten.rnn_tanh.data,
            aten.rnn_relu.input,
            aten.rnn_relu.data,
        ),
        FUSED_RECURRENT,
    ),
    aten.bilinear.default: BILINEAR,
    aten._trilinear.default: BILINEAR,
}

LOOKUP_OPS = frozenset({aten.embedding.default, *_overloads(aten.embedding_bag)})

# Ops that pick rows by an index tensor.
GATHERS = frozenset(
    {
        aten.index.Tensor,
        aten.index_select.default,
        aten.gather.default,
        aten.take_along_dim.default,
        aten.take.default,
        *LOOKUP_OPS,
    }
)

# Views and casts: the numbers stay as they are, so a use does not mention them.
_VIEWS = frozenset(
    {
        *("t", "numpy_T", "mT", "mH", "matrix_H", "adjoint", "transpose", "swapaxes", "swapdims"),
        *("permute", "movedim", "moveaxis", "view", "_unsafe_view", "reshape", "view_as"),
        *("reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as"),
        *("slice", "narrow", "select", "split", "split_with_sizes", "tensor_split", "chunk"),
        *("unbind", "to", "_to_copy", "type_as", "contiguous", "clone", "alias", "detach"),
        "lift_fresh_copy",
    }
)

# A function of the whole matrix: what it gives has other factors than what it takes.
_MATRIX_FUNCTION = re.compile(
    r"^(matrix_exp|inverse|cholesky\w*|qr|svd|lu\w*|triangular_solve|geqrf|orgqr|ormqr|linalg_\w+)$"
)
_NORMS = frozenset({"linalg_vector_norm", "linalg_norm", "linalg_matrix_norm", "linalg_vecdot"})

# What a cast to integers and back is called in exported quantisation-aware models.
_KNOWN_LIBRARIES = frozenset({"aten", "prims", "quantized_decomposed"})

# Quantised kernels and the like: products by their name.
_PRODUCT_LIKE = re.compile(r"(?:^|_)(?:b?mm|mv|matmul|linear|gemm|conv\w*)(?:_|$)")


def layer_places(node: Node) -> tuple[OperandPlace, ...]:
    """Where a layer takes its weights; () for every other op."""
    return LAYERS.get(node.target, ())


def product_places(node: Node) -> tuple[OperandPlace, ...]:
    """The operands of a product with fixed places; () for every other op."""
    if str(node.target) == _GROUPED:
        return (OperandPlace(1, "weight", "bio"), OperandPlace(0, "input", "oi"))
    return PRODUCTS.get(node.target, ())


def operand(node: Node, place: OperandPlace) -> Any:
    """The argument of `node` at `place`, given by position or by keyword."""
    if len(node.args) > place.index:
        return node.args[place.index]
    return node.kwargs.get(place.name)


def short_name(node: Node) -> str:
    """The operator without its library and overload: "linear", "batch_norm"."""
    return _name(node.target)


@lru_cache(maxsize=4096)
def _name(target: Any) -> str:
    packet = getattr(target, "overloadpacket", None)
    return str(getattr(packet or target, "__name__", target))


def is_view(node: Node) -> bool:
    """Whether the op keeps the weight's numbers as they are."""
    return short_name(node).rstrip("_") in _VIEWS


def value_operands(node: Node) -> list[Node]:
    """The operands whose numbers an op reads, without those that it only takes a shape from."""
    name = short_name(node)
    if name.endswith("_like") or name.startswith("new_"):
        return []
    return node.all_input_nodes[:1] if name.endswith("_as") else node.all_input_nodes


def matrix_function(node: Node) -> bool:
    """Whether the op is a function of a whole matrix, such as its exponential."""
    name = short_name(node)
    return name not in _NORMS and _MATRIX_FUNCTION.match(name) is not None


def foreign(node: Node) -> str | None:
    """Why nothing is known of what this op does with a weight, or None for ops that are known."""
    if node.target in REFUSED_OPS:
        return REFUSED_OPS[node.target]
    packet = getattr(node.target, "overloadpacket", None)
    if packet is None:
        return None
    if _PRODUCT_LIKE.search(packet.__name__):
        return f"is read by {node.target}, a product that this tool does not rewrite"
    if getattr(node.target, "namespace", "aten") in _KNOWN_LIBRARIES:
        return None
    return f"is read by {node.target}, an operator that this tool does not know"
