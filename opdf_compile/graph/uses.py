"""Follow a parameter from its get_attr through views and nested graphs to the ops that read it.

Higher-order ops (``wrap_with_set_grad_enabled``, ``wrap_with_autocast``, ``cond``) carry a nested
graph whose placeholders stand for operands of the op, in order; the walk goes through them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch.utils._pytree as pytree
from torch.fx import GraphModule, Node

from opdf_compile.graph.ops import VIEW_OPS, swaps


@dataclass(frozen=True)
class Reader:
    """One op that reads a weight.

    Attributes:
        node: The op.
        operand: The node whose value it reads (the get_attr, a view of it, or a placeholder).
        swapped: Whether rows and columns changed places on the way.
        through: Names of the views on the way.
    """

    node: Node
    operand: Node
    swapped: bool
    through: tuple[str, ...]


def readers(graph_module: GraphModule, start: Node) -> Iterator[Reader]:
    """Every op that reads `start`, after views, in nested graphs too."""
    stack: list[tuple[GraphModule, Node, bool, tuple[str, ...]]] = [
        (graph_module, start, False, ())
    ]
    seen: set[tuple[int, bool]] = set()
    while stack:
        holder, value, swapped, through = stack.pop()
        if (id(value), swapped) in seen:
            continue
        seen.add((id(value), swapped))
        for user in value.users:
            nested = list(entries(holder, user, value))
            if nested:
                stack.extend((inner, entry, swapped, through) for inner, entry in nested)
            elif user.target in VIEW_OPS or user.target is operator.getitem:
                step = swapped ^ swaps(user)
                stack.append((holder, user, step, (*through, user.name)))
            elif user.op == "call_function":
                yield Reader(user, value, swapped, through)


def entries(holder: GraphModule, call: Node, operand: Node) -> Iterator[tuple[GraphModule, Node]]:
    """The placeholders of nested graphs that stand for `operand` in a higher-order call."""
    arguments = [a for a in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(a, Node)]
    inner = [(a, sub) for a in arguments if (sub := submodule(holder, a)) is not None]
    if not inner:
        return
    graphs = {id(node) for node, _sub in inner}
    last = max(index for index, a in enumerate(arguments) if id(a) in graphs)
    operands = arguments[last + 1 :]
    for _node, sub in inner:
        places = [node for node in sub.graph.nodes if node.op == "placeholder"]
        if len(places) != len(operands):
            continue
        yield from (
            (sub, place) for place, given in zip(places, operands, strict=True) if given is operand
        )


def submodule(holder: GraphModule, node: Node) -> GraphModule | None:
    """The nested graph that a get_attr names, or None."""
    if node.op != "get_attr":
        return None
    found: object = holder
    for name in str(node.target).split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, GraphModule) else None


def fed_by_inputs(graph_module: GraphModule) -> set[Node]:
    """All nodes that depend on an input, in nested graphs too (their placeholders count)."""
    fed: set[Node] = set()
    for inner in all_graphs(graph_module):
        for node in inner.graph.nodes:
            if node.op == "placeholder" or any(source in fed for source in node.all_input_nodes):
                fed.add(node)
    return fed


def all_graphs(graph_module: GraphModule) -> Iterator[GraphModule]:
    """The graph module and every graph nested in it."""
    yield graph_module
    for node in graph_module.graph.nodes:
        inner = submodule(graph_module, node)
        if inner is not None:
            yield from all_graphs(inner)
