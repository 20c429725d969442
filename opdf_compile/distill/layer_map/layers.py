"""What a graph tells of each weight: its kind, its role, its shape, and when it is used.

The role of a weight is where its result goes: the first op that is more than a change of shape, and
the place it takes there. Query, key and value are told apart by it, whatever they are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from opdf_compile.distill.layer_map.weights import main_weights
from opdf_compile.graph.flow import meetings
from opdf_compile.graph.ops import short_name
from opdf_compile.graph.trace import Traced
from opdf_compile.graph.uses import nested_graphs

_SHAPES = {
    *("alias", "chunk", "clone", "contiguous", "detach", "dropout", "expand", "flatten"),
    *("getitem", "permute", "reshape", "split", "split_with_sizes", "squeeze", "t", "to"),
    *("transpose", "unbind", "unflatten", "unsqueeze", "view", "_to_copy", "_unsafe_view"),
    "_assert_tensor_metadata",
}
_SAME = {"addmm": "linear", "mm": "linear", "matmul": "linear", "bmm": "matmul"}


@dataclass(frozen=True)
class Layer:
    """One weight in a graph.

    Attributes:
        name: Its name in the model.
        shape: Its shape.
        kind: What it is: "table", "vector", "matrix", or "kernel 3x3".
        op: The op that reads it.
        role: Where the result goes.
        order: When it is used; layers beside each other are sorted by their roles.
        size: Rows and columns in units of the model's width.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    op: str = ""
    role: str = ""
    order: tuple[int, ...] = ()
    size: tuple[float, ...] = ()


def layers_of(traced: Traced) -> list[Layer]:
    """The main weights of a traced model, in the order in which they are used.

    A weight that the graph does not read is left out. Where there is no graph, the order is that of
    the modules, and there are no roles.
    """
    source = traced.source
    graph = traced.graphs.get("eval") or traced.graphs.get("train")
    holder = source if isinstance(source, torch.nn.Module) else graph
    assert holder is not None
    weights = main_weights(holder)
    if graph is None:
        found = [_layer(name, weight, "") for name, weight in weights.items()]
        return _scaled([replace(x, order=(place,)) for place, x in enumerate(found)])
    return _scaled(sorted(_in_graph(graph, weights), key=lambda layer: layer.order))


def _in_graph(graph: GraphModule, weights: Mapping[str, Tensor]) -> Iterator[Layer]:
    readers = meetings(graph).read
    depths: dict[Node, int] = {}
    _measure(graph, depths)
    places = {node: place for place, node in enumerate(depths)}
    for name, weight in weights.items():
        reader = readers.get(id(weight))
        if reader is None:
            continue
        node = _past_views(reader)
        user, place = _consumer(node)
        role = f"{_op(user)} {place}" if user is not None else ""
        after = depths.get(user, 0) if user is not None else 0
        order = (depths.get(node, 0), after, place, places.get(node, 0))
        yield replace(_layer(name, weight, _op(node)), role=role, order=order)


def _layer(name: str, weight: Tensor, op: str) -> Layer:
    if op == "embedding":
        kind = "table"
    elif weight.ndim < 2:
        kind = "vector"
    elif weight.ndim == 2:
        kind = "matrix"
    else:
        kind = "kernel " + "x".join(map(str, weight.shape[2:]))
    return Layer(name, tuple(weight.shape), kind, op)


def _scaled(layers: list[Layer]) -> list[Layer]:
    """With sizes in units of the model's width: the most frequent smaller side of a matrix.

    So the layers of a student that is narrower than its teacher in all places are of equal sizes.
    """
    sides = [min(x.shape[:2]) for x in layers if len(x.shape) > 1 and x.kind != "table"]
    sides = sides or [x.shape[0] for x in layers if x.shape]
    width = max(set(sides), key=lambda side: (sides.count(side), side), default=1)
    return [replace(x, size=tuple(s / max(width, 1) for s in x.shape[:2])) for x in layers]


def _measure(graph: GraphModule, depths: dict[Node, int], start: int = 0) -> None:
    """The longest way to each node, in the order of execution; nested graphs before their call."""
    for node in graph.graph.nodes:
        before = max((depths[n] for n in node.all_input_nodes), default=start)
        for nested in nested_graphs(graph, node):
            _measure(nested.module, depths, before)
        depths[node] = 1 + before


def _op(node: Node) -> str:
    name = short_name(node)
    return _SAME.get(name, name)


def _past_views(node: Node) -> Node:
    """From what reads a weight to what multiplies with it: a transpose or a cast may be between."""
    while len(node.all_input_nodes) == 1 and len(node.users) == 1 and _op(node) in _SHAPES:
        node = next(iter(node.users))
    return node


def _consumer(node: Node) -> tuple[Node | None, int]:
    """The first op after a node that is no change of shape, and the place of its operand."""
    seen: set[Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop(0)
        for user in current.users:
            if user in seen:
                continue
            seen.add(user)
            if _op(user) not in _SHAPES:
                return user, user.all_input_nodes.index(current)
            waiting.append(user)
    return None, 0
