"""Graphs within graphs.

Higher-order ops (``wrap_with_set_grad_enabled``, ``wrap_with_autocast``, ``cond``, ``scan``) carry
a nested graph whose placeholders stand for operands of the op, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node

from opdf_compile.graph.edit import attribute

# Higher-order ops that run their graph in rounds.
LOOPS = ("scan", "while_loop", "while_loop_stack_output")


@dataclass(frozen=True)
class Nested:
    """One graph in a higher-order call.

    Attributes:
        module: The nested graph.
        operands: For each of its placeholders what is passed in (a node, or a plain value); None
            where that cannot be told.
    """

    module: GraphModule
    operands: tuple[Any, ...] | None


def nested_graphs(holder: GraphModule, call: Node) -> list[Nested]:
    """The graphs that a call carries, with what their placeholders stand for."""
    if isinstance(call.target, torch._ops.OpOverload):
        return []  # An ordinary op: most nodes are, so this comes first.
    leaves = pytree.tree_leaves((call.args, call.kwargs))
    graphs = [
        (place, inner)
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, Node) and (inner := submodule(holder, leaf)) is not None
    ]
    if not graphs:
        return []
    rest = leaves[graphs[-1][0] + 1 :]
    return [Nested(inner, _operands(inner, rest)) for _place, inner in graphs]


def _operands(inner: GraphModule, rest: list[Any]) -> tuple[Any, ...] | None:
    """What is passed in, among the leaves after the last graph (names and flags stand between)."""
    wanted = sum(node.op == "placeholder" for node in inner.graph.nodes)
    nodes = [leaf for leaf in rest if isinstance(leaf, Node)]
    for candidates in (rest, nodes):
        if len(candidates) == wanted:
            return tuple(candidates)
    return None


def submodule(holder: GraphModule, node: Node) -> GraphModule | None:
    """The nested graph that a get_attr names, or None."""
    found = attribute(holder, str(node.target)) if node.op == "get_attr" else None
    return found if isinstance(found, GraphModule) else None


def all_graphs(graph_module: GraphModule) -> Iterator[GraphModule]:
    """The graph module and every graph nested in it."""
    yield graph_module
    for node in graph_module.graph.nodes:
        inner = submodule(graph_module, node)
        if inner is not None:
            yield from all_graphs(inner)
