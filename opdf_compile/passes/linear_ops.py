"""Which operators are linear maps of an input, and which map each of them is.

    layer     linear, conv1d..3d                    its kernel, bias, stride, padding, groups
    channels  batch_norm in eval, x * c, x / c, x + c     one number per channel, c a constant
    fixed     avg_pool that counts its padding, zero padding, dropout in eval, copies, -x
    sum       x + y, x - y of two inputs            no map of its own

A constant is whatever depends on no input: a parameter, a buffer, and what is computed from them (a
weight under weight norm, a layer scale that is reshaped). Every other operator ends a region.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from opdf_compile.graph import CONVOLUTIONS, arguments

aten = torch.ops.aten

LINEAR = aten.linear.default
NORM = aten.batch_norm.default
POOLS = frozenset({aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default})
PADS = frozenset({aten.pad.default, aten.constant_pad_nd.default})
SUMS: dict[Any, int] = {
    **dict.fromkeys((aten.add.Tensor, aten.add_.Tensor, aten.add.Scalar), 1),
    **dict.fromkeys((aten.sub.Tensor, aten.sub_.Tensor, aten.sub.Scalar), -1),
}
PRODUCTS = frozenset({aten.mul.Tensor, aten.mul_.Tensor, aten.mul.Scalar})
QUOTIENTS = frozenset({aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar})
_NEGATIVE = aten.neg.default
_COPIES = frozenset({aten.clone.default})
_ELEMENTWISE = frozenset({*SUMS, *PRODUCTS, *QUOTIENTS})
DROPOUTS = frozenset({aten.dropout.default, aten.feature_dropout.default})


def is_layer(node: Node) -> bool:
    """Whether the op has a weight matrix."""
    return node.target is LINEAR or node.target in CONVOLUTIONS


def flow(node: Node, varying: frozenset[Node]) -> tuple[tuple[Node, int], ...]:
    """The operands whose sum a linear op maps, each with its sign; () for every other op.

    Args:
        node: Of an eval graph with recorded values.
        varying: The nodes that depend on an input.
    """
    moving = [operand for operand in node.all_input_nodes if operand in varying]
    found = _signed(node, varying)
    if not found or set(moving) != {operand for operand, _sign in found}:
        return ()
    # A cast rounds, and a sum that repeats one side along an axis is no sum of two maps.
    kinds = {_kind(n) for n in (node, *moving)}
    shapes = {shape_of(n) for n in (node, *moving)} if node.target in _ELEMENTWISE else set()
    return found if None not in kinds and len(kinds) == 1 and len(shapes) < 2 else ()


def _signed(node: Node, varying: frozenset[Node]) -> tuple[tuple[Node, int], ...]:
    if node.op != "call_function":
        return ()
    sides = [(a, s) for a, s in zip(node.args, (1, SUMS.get(node.target, 1)), strict=False)]
    moving = tuple((a, s) for a, s in sides if isinstance(a, Node) and a in varying)
    if node.target in SUMS:
        return moving if arguments(node).get("alpha", 1) == 1 else ()
    if node.target in PRODUCTS:  # Of two inputs it is not linear.
        return moving if len(moving) == 1 else ()
    if node.target is _NEGATIVE:
        return tuple((a, -s) for a, s in moving)
    return moving[:1] if node.target in QUOTIENTS or is_layer(node) or _fixed(node) else ()


def _fixed(node: Node) -> bool:
    """Whether the op is linear with the options that it has."""
    if node.target in _COPIES:
        return True
    if node.target is NORM:
        given = arguments(node)
        return not given["training"] and given["running_mean"] is not None
    if node.target in DROPOUTS:
        return not arguments(node)["train"]
    if node.target in POOLS:
        given = arguments(node)
        uncounted = any(given["padding"]) and not given["count_include_pad"]
        return not uncounted and not given["ceil_mode"] and given.get("divisor_override") is None
    return node.target in PADS and _even_zeros(arguments(node))


def _even_zeros(given: Mapping[str, Any]) -> bool:
    pads = given["pad"]
    plain = given.get("mode", "constant") == "constant" and not given.get("value")
    return plain and all(a == b >= 0 for a, b in zip(pads[::2], pads[1::2], strict=True))


def _kind(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) and value.is_floating_point() else None


def shape_of(node: Node) -> tuple[str, ...]:
    """A value's shape, to compare without a question to torch about its free sizes."""
    return tuple(map(str, node.meta["val"].shape))


def writes(node: Node) -> bool:
    """Whether the op writes to one of its operands."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
