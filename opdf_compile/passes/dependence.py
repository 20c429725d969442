"""What the nodes of a graph depend on: which vary with the input, and what a value is made of.

A node is varying if an input reaches it, if it draws random numbers, if it writes to one of its
operands or may have another side effect, or if it reads what such a node writes: the tensor, every
view of it, and every other node that reads it by name. Everything else has one value for one set of
parameters: it is loop-invariant, and may be computed once per optimizer step.

The cost is one walk over the graph for all nodes together, and for one weight as much as it is made
of, so that a pass over a deep network takes time in proportion to its size.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from opdf_compile.graph import Nested, arguments, nested_graphs
from opdf_compile.passes.linear_ops import DROPOUTS

aten = torch.ops.aten

# They may return memory of their first operand, which their schemas do not say.
_HANDING_BACK = frozenset(
    {
        aten.alpha_dropout.default,
        aten.feature_alpha_dropout.default,
        aten.type_as.default,
        aten.sum_to_size.default,
        aten.atleast_1d.default,
        aten.atleast_2d.default,
        aten.atleast_3d.default,
        aten.conj_physical.default,
        aten.to_dense.default,
        aten._unsafe_view.default,
        aten.unsafe_chunk.default,
        aten.unsafe_split.Tensor,
        aten.unsafe_split_with_sizes.default,
    }
)
# So may these where they have one operand alone: they move its axes at most, or do nothing.
_OF_ONE = frozenset({aten.einsum.default, aten.cartesian_prod.default})
# Each result is a view of the operand at its place in a list; nor do their schemas say that.
_ONE_BY_ONE = frozenset(
    {
        aten.broadcast_tensors.default,
        aten.meshgrid.default,
        aten.meshgrid.indexing,
        aten.atleast_1d.Sequence,
        aten.atleast_2d.Sequence,
        aten.atleast_3d.Sequence,
    }
)


class Dependence:
    """The operand-to-reader relation of one graph.

    The graph is left as it is; the relation is that of the moment of the call.
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
    def _bases(self) -> dict[Node, Node]:
        """By node, what it is a view of, or itself."""
        return _bases(self._order)

    def base(self, node: Node) -> Node:
        """What a node's value is a view of, or the node itself."""
        return self._bases[node]

    @cached_property
    def varying(self) -> frozenset[Node]:
        """Every node whose value may differ between two calls with the same parameters."""
        roots = {node for node in self._order if varies_by_itself(node)}
        written = {self._bases[operand] for node in roots for operand in _written(node)}
        # A buffer that is written to varies for every reader, whichever node reads it.
        names = {base.target for base in written if base.op == "get_attr"}
        varying: set[Node] = set()
        for node in self._order:
            by_name = node.op == "get_attr" and node.target in names
            reached = not varying.isdisjoint(node.all_input_nodes)
            if node in roots or node in written or by_name or reached:
                varying.add(node)
        return frozenset(varying)

    def sources(self, node: Node) -> tuple[Node, ...]:
        """The node and everything that it is computed from, in graph order."""
        import networkx as nx

        return self._sorted(nx.ancestors(self._edges, node) | {node})

    @cached_property
    def _writers(self) -> dict[Node, tuple[Node, ...]]:
        """By what is written to, the nodes that write to it or to a view of it."""
        found: dict[Node, list[Node]] = {}
        for node in self._order:
            for operand in _written(node) if varies_by_itself(node) else ():
                found.setdefault(self._bases[operand], []).append(node)
        return {base: tuple(nodes) for base, nodes in found.items()}

    def writers(self, node: Node) -> tuple[Node, ...]:
        """The nodes that write to the memory of a node's value, in graph order."""
        return self._writers.get(self._bases[node], ())

    def components(self) -> list[tuple[Node, ...]]:
        """Sets of nodes that share nothing, each in graph order, ordered by their first nodes."""
        import networkx as nx

        found = [self._sorted(part) for part in nx.weakly_connected_components(self._edges)]
        return sorted(found, key=lambda part: self._order[part[0]])

    def _sorted(self, nodes: set[Node]) -> tuple[Node, ...]:
        return tuple(sorted(nodes, key=self._order.__getitem__))


def varies_by_itself(node: Node) -> bool:
    """Whether a node may differ between two calls though what it reads is the same."""
    if node.op in ("get_attr", "output"):
        return False
    if node.op != "call_function":
        return True  # An input; or a module or method, which may do anything.
    if isinstance(node.target, torch._ops.OpOverload):
        tags = node.target.tags
        return torch.Tag.nondeterministic_seeded in tags or node.target._schema.is_mutable
    # A higher-order op carries a graph of its own, and other functions are anybody's. What export
    # leaves besides ops is arithmetic on sizes and the unpacking of tuples.
    if getattr(node.target, "__module__", None) not in ("_operator", "math"):
        return True
    name = getattr(node.target, "__name__", "")
    return name in ("setitem", "delitem") or hasattr(operator, f"__{name[1:]}__") and name[0] == "i"


def _written(node: Node) -> list[Node]:
    """The operands that a node writes to; all of them where nothing tells."""
    if node.op == "placeholder":
        return []
    if isinstance(node.target, torch._ops.OpOverload):
        return _operands(node, lambda info: bool(info.is_write))
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return _written_inside(node)
    return list(node.all_input_nodes)


def _written_inside(node: Node) -> list[Node]:
    """The operands that the nested graphs of a higher-order op write to."""
    found: list[Node] = []
    for nested, places, bases in _inside(node):
        written = {bases[o] for n in bases if varies_by_itself(n) for o in _written(n)}
        if nested.operands is None:  # Nothing tells which operand it is.
            found.extend(node.all_input_nodes if not written.isdisjoint(places) else ())
            continue
        given = [o for place, o in zip(places, nested.operands, strict=True) if place in written]
        found.extend(operand for operand in given if isinstance(operand, Node))
    return found


Region = tuple[Nested, list[Node], dict[Node, Node]]


def _inside(node: Node) -> Iterator[Region]:
    """The nested graphs of a higher-order op, with their placeholders and what is a view there."""
    owner = node.graph.owning_module
    for nested in nested_graphs(owner, node) if isinstance(owner, GraphModule) else ():
        inner = nested.module.graph.nodes
        yield nested, [n for n in inner if n.op == "placeholder"], _bases(inner)


def _bases(nodes: Iterable[Node]) -> dict[Node, Node]:
    """By node of a graph, what it is a view of, or itself."""
    found: dict[Node, Node] = {}
    # Each of a region's results asks for the same.
    inside = cache(lambda region: tuple(_inside(region)))
    for node in nodes:
        viewed: list[Node] = []
        if _hands_back(node):
            viewed = node.all_input_nodes[:1]
        elif isinstance(node.target, torch._ops.OpOverload):
            viewed = _operands(node, lambda info: True)
        elif node.op == "call_function" and node.target is operator.getitem:
            viewed = _taken(node, inside)
        found[node] = found[viewed[0]] if viewed else node
    return found


def _taken(node: Node, inside: Callable[[Node], tuple[Region, ...]]) -> list[Node]:
    """What a `getitem` takes its result from: a tuple, or the operand that this result views."""
    source, index = node.args
    if not isinstance(source, Node):
        return node.all_input_nodes
    if source.target in _ONE_BY_ONE:
        operands: Any = source.args[0]
        return [operands[index]]
    for nested, places, bases in inside(source):
        results: Any = next(n for n in bases if n.op == "output").args[0]
        given = dict(zip(places, nested.operands or (), strict=False))
        viewed = given.get(bases.get(results[index], source))
        if isinstance(viewed, Node):
            return [viewed]
    return [source]


def _hands_back(node: Node) -> bool:
    """Whether an op returns memory of its first operand, which its schema does not say."""
    if node.target in _HANDING_BACK:
        return True
    if node.target in DROPOUTS:
        given = arguments(node)
        return not (given["train"] and given["p"])
    return node.target in _OF_ONE and len(node.all_input_nodes) == 1


def _operands(node: Node, wanted: Callable[[Any], bool]) -> list[Node]:
    """The operands whose memory the op's schema mentions, in a way that is wanted."""
    assert isinstance(node.target, torch._ops.OpOverload)
    found: list[Node] = []
    for place, argument in enumerate(node.target._schema.arguments):
        given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and wanted(argument.alias_info):
            several = given if isinstance(given, list | tuple) else [given]
            found.extend(operand for operand in several if isinstance(operand, Node))
    return found
