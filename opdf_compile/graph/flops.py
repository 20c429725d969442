"""Floating point operations of a traced graph, from the shapes that its nodes carry.

Linear and convolution ops are counted as two operations per multiply-add of the product; products
inside attention come from torch's own table (torch.utils.flop_counter). Elementwise work is left
out: it is bound by memory, not by arithmetic. Symbolic sizes count at the example's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule, Node

from opdf_compile.graph.ops import WEIGHT_OPS, operand
from opdf_compile.graph.recorded import concrete
from opdf_compile.graph.uses import all_graphs

# A training step runs each product three times: forward, towards the input, towards the weight.
STEP_FACTOR = 3


def shape_of(node: Any) -> tuple[int, ...] | None:
    """The example's shape of the tensor that a node gives, if the graph records it."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, Tensor):
        return None
    return tuple(concrete(size) for size in value.shape)


def weight_op_flops(node: Node, weight: Sequence[int]) -> int:
    """Forward FLOPs of a linear or convolution op.

    Args:
        node: The op.
        weight: Shape of the weight as the op reads it.
    """
    where = WEIGHT_OPS[node.target][0]
    output = shape_of(node)
    if output is None:
        return 0
    if where.convolution and _is_transposed(node):
        # Each input element meets (O/g * prod k) weights.
        source = shape_of(operand(node, type(where)(0, "input")))
        return 2 * prod(source) * prod(weight[1:]) if source else 0
    if where.convolution:
        return 2 * prod(output) * prod(weight[1:])
    other = shape_of(node.args[where.other]) if len(node.args) > where.other else None
    return 2 * prod(output) * (other[-1] if other else weight[-1])


def _is_transposed(node: Node) -> bool:
    name = str(node.target)
    if "conv_transpose" in name:
        return True
    # aten.convolution(input, weight, bias, stride, padding, dilation, transposed, ...)
    return "convolution" in name and len(node.args) > 6 and bool(node.args[6])


def forward_flops(graph_module: GraphModule) -> int:
    """FLOPs of all products in one forward of the graph, nested graphs included."""
    return sum(
        _node_flops(node) for inner in all_graphs(graph_module) for node in inner.graph.nodes
    )


def step_flops(graph_module: GraphModule) -> int:
    """FLOPs of one training step (forward and backward) on the example's batch."""
    return STEP_FACTOR * forward_flops(graph_module)


def _node_flops(node: Node) -> int:
    if node.op != "call_function":
        return 0
    if node.target in WEIGHT_OPS:
        where = WEIGHT_OPS[node.target][0]
        weight = shape_of(operand(node, where))
        return weight_op_flops(node, weight) if weight else 0
    if node.target is torch.ops.aten.scaled_dot_product_attention.default:
        return _attention_flops(node)
    count = _registry().get(getattr(node.target, "overloadpacket", None))
    if count is None:
        return 0
    args, kwargs, value = pytree.tree_map_only(Node, _example, (node.args, node.kwargs, node))
    if any(value is None for value in pytree.tree_leaves(args[:2])):
        return 0
    return int(count(*args, **kwargs, out_val=value))


def _attention_flops(node: Node) -> int:
    """Torch's table knows the kernels that this op becomes, and not the op itself.

    q (.., L, E), k (.., S, E), v (.., S, Ev): 2 L S E for the scores, 2 L S Ev for the mean.
    """
    query, key, output = shape_of(node.args[0]), shape_of(node.args[1]), shape_of(node)
    if query is None or key is None or output is None:
        return 0
    return 2 * prod(output[:-1]) * key[-2] * (query[-1] + output[-1])


def _registry() -> dict[Any, Callable[..., int]]:
    from torch.utils.flop_counter import flop_registry

    return flop_registry


def _example(node: Node) -> Any:
    """The node's value with the example's sizes, as a tensor without memory."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty([concrete(s) for s in value.shape], dtype=value.dtype, device="meta")
        return concrete(value) if isinstance(value, torch.SymInt) else value

    return pytree.tree_map(plain, node.meta.get("val"))
