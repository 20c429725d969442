"""What the nodes of a graph depend on: which vary with the input, and what a value is made of.

A node is varying if an input reaches it, if it draws random numbers, if it writes to one of its
operands or has another side effect, or if it reads what such a node wrote. Everything else has one
value for one set of parameters: it is loop-invariant, and may be computed once per optimizer step.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch.fx import Graph, Node


class Dependence:
    """The operand-to-reader relation of one graph.

    Args:
        graph: Left as it is; the relation is that of the moment of the call.
    """

    def __init__(self, graph: Graph) -> None:
        """Record the edges."""
        import networkx as nx

        self._order = {node: place for place, node in enumerate(graph.nodes)}
        self._edges: Any = nx.DiGraph()
        self._edges.add_nodes_from(graph.nodes)
        self._edges.add_edges_from(
            (source, node) for node in graph.nodes for source in node.all_input_nodes
        )

    @cached_property
    def varying(self) -> frozenset[Node]:
        """Every node whose value may differ between two calls with the same parameters."""
        import networkx as nx

        roots = {node for node in self._order if _varies_by_itself(node)}
        # What is written to varies for every reader: a get_attr of a buffer is a root too.
        roots |= {operand for node in roots for operand in _written(node)}
        return frozenset(roots.union(*(nx.descendants(self._edges, root) for root in roots)))

    def sources(self, node: Node) -> tuple[Node, ...]:
        """The node and everything that it is computed from, in graph order."""
        import networkx as nx

        return self._sorted(nx.ancestors(self._edges, node) | {node})

    def components(self) -> list[tuple[Node, ...]]:
        """Sets of nodes that share nothing, each in graph order, ordered by their first nodes."""
        import networkx as nx

        found = [self._sorted(part) for part in nx.weakly_connected_components(self._edges)]
        return sorted(found, key=lambda part: self._order[part[0]])

    def _sorted(self, nodes: set[Node]) -> tuple[Node, ...]:
        return tuple(sorted(nodes, key=self._order.__getitem__))


def _varies_by_itself(node: Node) -> bool:
    if node.op == "placeholder":
        return True
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        # A higher-order op carries a graph of its own, which may do anything.
        return isinstance(node.target, torch._ops.HigherOrderOperator)
    return torch.Tag.nondeterministic_seeded in node.target.tags or node.target._schema.is_mutable


def _written(node: Node) -> list[Node]:
    """The operands that an op writes to."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    arguments = node.target._schema.arguments
    places = [
        node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        for place, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [given for given in places if isinstance(given, Node)]
