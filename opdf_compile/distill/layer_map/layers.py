"""What a graph tells of each weight: its kind, its role, its shape, and when it is used.

The role of a weight is where its result goes: the first op that is more than a change of shape, and
the place it takes there. Query, key and value are told apart by it, whatever they are called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from opdf_compile.distill.layer_map.weights import main_weights
from opdf_compile.graph import Traced, meetings, nested_graphs, short_name

_SHAPES = {
    *("alias", "chunk", "clone", "contiguous", "detach", "dropout", "expand", "flatten"),
    *("getitem", "permute", "reshape", "split", "split_with_sizes", "squeeze", "t", "to"),
    *("transpose", "unbind", "unflatten", "unsqueeze", "view", "_to_copy", "_unsafe_view"),
    "_assert_tensor_metadata",
}
# Where a result that goes there is mixed with another: queries, keys and values.
_MIXING = {"matmul", "baddbmm", "einsum"}
_SAME = {"addmm": "linear", "mm": "linear", "matmul": "linear", "bmm": "matmul"}


@dataclass(frozen=True)
class Layer:
    """One weight in a graph.

    Attributes:
        name: Its name in the model.
        shape: Its shape.
        kind: What it is: "table", "vector", "matrix", "kernel 3x3", or "3 axes".
        op: The op that reads it.
        role: Where the result goes.
        order: When it is used; layers that read one value are in the order of their roles.
        size: Rows and columns; of a stack of matrices those of each.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    op: str = ""
    role: str = ""
    order: int = 0
    size: tuple[float, ...] = ()

    @property
    def mixed(self) -> bool:
        """Whether the result is multiplied with another activation: queries, keys and values."""
        op = self.role.partition(" ")[0]
        return op in _MIXING or op.startswith("scaled_dot_product")


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
        return [replace(x, order=place) for place, x in enumerate(found)]
    return sorted(_in_graph(graph, weights), key=lambda layer: layer.order)


def in_common_units(mine: Sequence[Layer], theirs: Sequence[Layer]) -> tuple[list[Layer], ...]:
    """Both with sizes in units of the model's width, unless they share most of their shapes.

    So the layers of a student that is narrower than its teacher everywhere are of equal sizes. The
    width is the largest smaller side of a matrix or kernel.
    """
    shapes = {layer.shape for layer in theirs}
    if sum(layer.shape in shapes for layer in mine) > len(mine) / 2:
        return list(mine), list(theirs)
    return _scaled(mine), _scaled(theirs)


def _in_graph(graph: GraphModule, weights: Mapping[str, Tensor]) -> list[Layer]:
    readers = meetings(graph).read
    depths: dict[Node, int] = {}
    _measure(graph, depths)
    places = {node: place for place, node in enumerate(depths)}
    found: list[Layer] = []
    beside: dict[Node, list[tuple[tuple[int, ...], int]]] = {}
    for name, weight in weights.items():
        reader = readers.get(id(weight))
        if reader is None:
            continue
        node = _past_views(reader)
        user, place = _consumer(node)
        role = f"{_op(user)} {place}" if user is not None else ""
        after = depths.get(user, 0) if user is not None else 0
        rank = (after, place, places[node])
        beside.setdefault(_read_by(node, depths), []).append((rank, len(found)))
        found.append(replace(_layer(name, weight, _op(node)), role=role, order=places[node]))
    for group in beside.values():
        # One code computes queries first and another values: they change places, as far as needed.
        orders = sorted(found[index].order for _rank, index in group)
        for order, (_rank, index) in zip(orders, sorted(group), strict=True):
            found[index] = replace(found[index], order=order)
    return found


def _read_by(node: Node, depths: Mapping[Node, int]) -> Node:
    """The activation that an op reads, without changes of shape."""
    current = node
    while current is node or (_op(current) in _SHAPES and current.all_input_nodes):
        if not current.all_input_nodes:
            break
        current = max(current.all_input_nodes, key=lambda n: depths.get(n, 0))
    return current


def _layer(name: str, weight: Tensor, op: str) -> Layer:
    shape = tuple(weight.shape)
    size = tuple(map(float, shape[-2:]))
    if op == "embedding":
        kind = "table"
    elif len(shape) < 3:
        kind = "matrix" if len(shape) == 2 else "vector"
    elif "conv" in op or not op:
        kind = "kernel " + "x".join(map(str, shape[2:]))
        size = tuple(map(float, shape[:2]))
    else:
        kind = f"{len(shape)} axes"
    return Layer(name, shape, kind, op, size=size)


def _scaled(layers: Sequence[Layer]) -> list[Layer]:
    sides = [min(x.size) for x in layers if x.kind == "matrix" or x.kind.startswith("kernel")]
    width = max(sides or [side for x in layers for side in x.size], default=1.0)
    return [replace(x, size=tuple(side / width for side in x.size)) for x in layers]


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
