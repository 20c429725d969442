"""Floating point operations of a traced graph, from the shapes that its nodes carry.

Linear and convolution ops are counted as two operations per multiply-add of the product; products
inside attention come from torch's own table (torch.utils.flop_counter). Elementwise work is left
out: it is bound by memory, not by arithmetic. Symbolic sizes count at the example's size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import GraphModule, Node

from opdf_compile.graph.equations import labelled_operands
from opdf_compile.graph.gradients import differentiated
from opdf_compile.graph.op_arguments import arguments
from opdf_compile.graph.ops import layer_places, operand
from opdf_compile.graph.provenance import example_shape
from opdf_compile.graph.recorded import concrete
from opdf_compile.graph.uses import all_graphs

# How often a training step runs a product where nothing tells: forward, towards the input, towards
# the weight. Towards the input of a first layer it runs none.
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


class Product(NamedTuple):
    """One product that an op runs in a forward.

    Attributes:
        flops: Of it.
        operands: For each of its operands the nodes whose values it is made of.
    """

    flops: int
    operands: tuple[tuple[Node, ...], ...]

    def passes(self, differentiated: Collection[Node]) -> int:
        """How often a training step runs it: forward, and towards each operand with a gradient."""
        return 1 + sum(any(n in differentiated for n in nodes) for nodes in self.operands)


def passes(node: Node, weight: Node | None, differentiated: Collection[Node]) -> int:
    """How often a training step runs the product of an op with one of its weights.

    Args:
        node: The op.
        weight: The operand that is the weight.
        differentiated: The nodes whose values get a gradient.
    """
    own = (p for p in products(node) if any(weight in nodes for nodes in p.operands))
    return next((product.passes(differentiated) for product in own), STEP_FACTOR)


def forward_flops(graph_module: GraphModule) -> int:
    """FLOPs of all products in one forward of the graph, nested graphs included."""
    return sum(product.flops for product in _all_products(graph_module))


def step_flops(graph_module: GraphModule) -> int:
    """FLOPs of one training step (forward and backward) on the example's batch."""
    found = differentiated(graph_module)
    return sum(p.flops * p.passes(found) for p in _all_products(graph_module))


def _all_products(graph_module: GraphModule) -> Iterator[Product]:
    for inner in all_graphs(graph_module):
        for node in inner.graph.nodes:
            yield from products(node)


def products(node: Node) -> list[Product]:
    """The products that an op runs."""
    if node.op != "call_function":
        return []
    places = layer_places(node)
    if places:
        # Inputs come first, in the order of their weights: a cell's x and its state. The layers of
        # which that is not true are fused ones for inference: no gradient goes through them.
        weights = [(operand(node, place), node.args[i]) for i, place in enumerate(places)]
        return [
            Product(weight_op_flops(node, shape), (_nodes(given), (weight,)))
            for weight, given in weights
            if isinstance(weight, Node) and (shape := example_shape(weight))
        ]
    operands = [given for given, _labels in labelled_operands(node)]
    if operands and (shape := example_shape(operands[0])):
        return [Product(weight_op_flops(node, shape), tuple((given,) for given in operands))]
    if node.target is torch.ops.aten.scaled_dot_product_attention.default:
        return _attention(node)
    flops = _counted(node)
    return [Product(flops, (tuple(node.all_input_nodes),) * 2)] if flops else []


def _nodes(given: Any) -> tuple[Node, ...]:
    return tuple(leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Node))


def _counted(node: Node) -> int:
    """FLOPs of an op by torch's own table."""
    from torch.utils.flop_counter import flop_registry

    count = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if count is None:
        return 0
    args, kwargs, value = pytree.tree_map_only(Node, _example, (node.args, node.kwargs, node))
    if any(value is None for value in pytree.tree_leaves(args[:2])):
        return 0
    return int(count(*args, **kwargs, out_val=value))


def _attention(node: Node) -> list[Product]:
    """Torch's table knows the kernels that this op becomes, and not the op itself.

    q (.., L, E), k (.., S, E), v (.., S, Ev): 2 L S E for the scores, 2 L S Ev for the mean.
    """
    query, key, value = node.args[:3]
    if not (isinstance(query, Node) and isinstance(key, Node) and isinstance(value, Node)):
        return []
    asked, kept, output = example_shape(query), example_shape(key), example_shape(node)
    if asked is None or kept is None or output is None:
        return []
    pairs = 2 * prod(output[:-1]) * kept[-2]
    return [
        Product(pairs * asked[-1], ((query,), (key,))),
        Product(pairs * output[-1], ((query, key), (value,))),
    ]


def _example(node: Node) -> Any:
    """The node's value with the example's sizes, as a tensor without memory."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty([concrete(s) for s in value.shape], dtype=value.dtype, device="meta")
        return concrete(value) if isinstance(value, torch.SymInt) else value

    return pytree.tree_map(plain, node.meta.get("val"))
