"""Floating point operations of a traced graph, from the shapes that its nodes carry.

Linear and convolution ops are counted as two operations per multiply-add of the product; products
inside attention come from torch's own table (torch.utils.flop_counter). Elementwise work is left
out: it is bound by memory, not by arithmetic. Symbolic sizes count at the example's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule, Node

from opdf_compile.graph.equations import labelled_operands
from opdf_compile.graph.op_arguments import arguments
from opdf_compile.graph.ops import layer_places, operand
from opdf_compile.graph.provenance import example_shape
from opdf_compile.graph.recorded import concrete
from opdf_compile.graph.uses import all_graphs

# A training step runs each product three times: forward, towards the input, towards the weight.
STEP_FACTOR = 3


def weight_op_flops(node: Node, weight: Sequence[int], labels: str = "") -> int:
    """Forward FLOPs of an op for one of its weights.

    Args:
        node: The op.
        weight: Shape of the weight as the op reads it.
        labels: What the axes of the operand do (see `ops`); those of the op's first place if "".
    """
    output, places = example_shape(node), layer_places(node)
    if output is None:
        return 0
    if places and places[0].axes.endswith("*"):
        # Each element of the result meets (I/g * prod k) weights; of a transposed convolution
        # each element of the input meets (O/g * prod k).
        source = example_shape(node.args[0]) if _is_transposed(node) else output
        return 2 * prod(source or (0,)) * prod(weight[1:])
    if places:
        source = example_shape(node.args[0])
        return 2 * prod(source[:-1]) * prod(weight) if source else 0
    if not labels:
        labels = next((found for _operand, found in labelled_operands(node)), "")
    summed = [size for size, label in zip(weight, labels, strict=False) if label == "i"]
    return 2 * prod(output) * prod(summed)


def _is_transposed(node: Node) -> bool:
    return "conv_transpose" in str(node.target) or bool(arguments(node).get("transposed"))


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
    if layer_places(node):
        weights = [example_shape(operand(node, place)) for place in layer_places(node)]
        return sum(weight_op_flops(node, weight) for weight in weights if weight)
    first = next((example_shape(given) for given, _labels in labelled_operands(node)), None)
    if first:
        return weight_op_flops(node, first)
    if node.target is torch.ops.aten.scaled_dot_product_attention.default:
        return _attention_flops(node)
    from torch.utils.flop_counter import flop_registry

    count = flop_registry.get(getattr(node.target, "overloadpacket", None))
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
    query, key, output = map(example_shape, (*node.args[:2], node))
    if query is None or key is None or output is None:
        return 0
    return 2 * prod(output[:-1]) * key[-2] * (query[-1] + output[-1])


def _example(node: Node) -> Any:
    """The node's value with the example's sizes, as a tensor without memory."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty([concrete(s) for s in value.shape], dtype=value.dtype, device="meta")
        return concrete(value) if isinstance(value, torch.SymInt) else value

    return pytree.tree_map(plain, node.meta.get("val"))
