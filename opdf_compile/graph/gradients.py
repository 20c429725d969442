"""Which values of a graph a backward pass goes to: those that a trained Parameter has gone into.

The input of a first layer is none of them, nor is what comes out of frozen layers or is made where
gradients are off: no product is run towards those.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from opdf_compile.graph import ops
from opdf_compile.graph.edit import attribute
from opdf_compile.graph.provenance import FED, NOTHING, is_size
from opdf_compile.graph.scope import Scope
from opdf_compile.graph.uses import LOOPS, Nested, nested_graphs

_ENDS = frozenset({torch.ops.aten.detach.default, torch.ops.aten.detach_.default})


def differentiated(module: GraphModule) -> set[Node]:
    """The nodes of a graph, and of all graphs nested in it, whose values get a gradient."""
    found: set[Node] = set()
    _walk(module, found)
    return found


def _walk(module: GraphModule, found: set[Node]) -> None:
    # Fed here by trained Parameters; a scope knows what is written into a tensor later, too.
    scope = Scope(module)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = attribute(module, str(node.target))
            scope.known[node] = (
                FED if isinstance(value, Tensor) and value.requires_grad else NOTHING
            )
        elif node.op == "placeholder":
            scope.known[node] = FED if node in found else NOTHING
        elif node.op == "call_function" and not _ends(node):
            reached = any(scope.value(source).fed for source in ops.value_operands(node))
            scope.put(node, FED if reached and _takes_part(node) else NOTHING)
            for nested in nested_graphs(module, node):
                found.update(_entered(scope, node, nested))
                _walk(nested.module, found)
    found.update(node for node in module.graph.nodes if scope.value(node).fed)


def _entered(scope: Scope, call: Node, nested: Nested) -> list[Node]:
    """The inputs of a nested graph that get a gradient, as far as that can be told."""
    places = [node for node in nested.module.graph.nodes if node.op == "placeholder"]
    if nested.operands is None or ops.short_name(call) in LOOPS:
        # What a round makes is what the next one reads.
        return places if scope.value(call).fed else []
    given = zip(places, nested.operands, strict=True)
    return [place for place, operand in given if scope.value(operand).fed]


def _ends(node: Node) -> bool:
    """Whether no gradient goes back from an op, nor from any within it."""
    without = node.target is torch.ops.higher_order.wrap_with_set_grad_enabled and not node.args[0]
    return without or node.target in _ENDS


def _takes_part(node: Node) -> bool:
    """Whether an op's value can have a gradient: sizes, integers and truth values have none."""
    value = node.meta.get("val")
    if is_size(node):
        return False
    return not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex()
