"""Which values of a graph a backward pass goes to: those that a trained Parameter has gone into.

The input of a first layer is none of them, nor is what comes out of frozen layers: no product is
run towards those.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from opdf_compile.graph import ops
from opdf_compile.graph.edit import attribute
from opdf_compile.graph.provenance import is_size
from opdf_compile.graph.uses import LOOPS, Nested, nested_graphs

_ENDS = frozenset({torch.ops.aten.detach.default, torch.ops.aten.detach_.default})


def differentiated(module: GraphModule) -> set[Node]:
    """The nodes of a graph, and of all graphs nested in it, whose values get a gradient."""
    found: set[Node] = set()
    _walk(module, found)
    return found


def _walk(module: GraphModule, found: set[Node]) -> None:
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = attribute(module, str(node.target))
            if isinstance(value, Tensor) and value.requires_grad:
                found.add(node)
        elif node.op == "call_function":
            if _hands_on(node) and not found.isdisjoint(node.all_input_nodes):
                found.add(node)
            for nested in nested_graphs(module, node):
                found.update(_entered(node, nested, found))
                _walk(nested.module, found)


def _entered(call: Node, nested: Nested, found: set[Node]) -> list[Node]:
    """The inputs of a nested graph that get a gradient, as far as that can be told."""
    places = [node for node in nested.module.graph.nodes if node.op == "placeholder"]
    if nested.operands is None or ops.short_name(call) in LOOPS:
        # What a round makes is what the next one reads.
        return places if call in found else []
    return [p for p, given in zip(places, nested.operands, strict=True) if given in found]


def _hands_on(node: Node) -> bool:
    value = node.meta.get("val")
    if is_size(node) or node.target in _ENDS:
        return False
    return not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex()
