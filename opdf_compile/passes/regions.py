"""Compose regions of an expanded graph, found from the graph alone.

A region is what depends on the cores of one weight and on nothing else. The first closing cast in
it (see compose_graph) is the weight; whatever follows (a transpose, a slice) belongs to its reader.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from opdf_compile.errors import FoldError
from opdf_compile.graph import attribute
from opdf_compile.passes.compose_graph import WEIGHT_OP
from opdf_compile.passes.dependence import varies_by_itself

_CORE = re.compile(r"^(?P<key>.+)_cores\.(?P<index>\d+)$")


@dataclass(frozen=True, eq=False)
class Region:
    """One weight's compose subgraph.

    Attributes:
        key: Name of the weight.
        cores: get_attr nodes by position.
        weight: The node whose value is the weight.
        inner: All nodes from the cores up to `weight`, in graph order.
    """

    key: str
    cores: tuple[Node, ...]
    weight: Node
    inner: tuple[Node, ...]


def core_key(target: str) -> tuple[str, int] | None:
    """(weight, position) of a core's name, or None for other names."""
    found = _CORE.match(target)
    return (found["key"], int(found["index"])) if found else None


def find_regions(module: GraphModule) -> tuple[Region, ...]:
    """The compose region of every weight whose cores the graph reads.

    Raises:
        FoldError: Cores are missing in between, or do not lead to one weight.
    """
    cores: dict[str, dict[int, Node]] = {}
    region_of: dict[Node, str] = {}
    members: dict[str, list[Node]] = {}
    constants: set[Node] = set()
    for node in module.graph.nodes:
        found = core_key(str(node.target)) if node.op == "get_attr" else None
        if found is not None and isinstance(attribute(module, str(node.target)), nn.Parameter):
            key, index = found
            cores.setdefault(key, {})[index] = node
            region_of[node] = key
        elif node.op == "call_function":
            made = [source for source in node.all_input_nodes if source not in constants]
            homes = {region_of.get(source) for source in made}
            if not made and not varies_by_itself(node):
                constants.add(node)  # Such as the arange that a compose may use.
            elif len(homes) == 1 and (home := homes.pop()) is not None:
                region_of[node] = home
                members.setdefault(home, []).append(node)
    return tuple(_region(key, cores[key], members.get(key, []), constants) for key in cores)


def _region(key: str, cores: dict[int, Node], members: list[Node], constants: set[Node]) -> Region:
    if sorted(cores) != list(range(len(cores))):
        raise FoldError(
            f"the graph holds the cores {sorted(cores)} of {key!r}, wanted 0 to {max(cores)} "
            "without a gap; pass the file that opdf-compile expand wrote"
        )
    ordered = tuple(cores[index] for index in range(len(cores)))
    for weight in members:
        inner = _between(weight, members)
        read = {source for node in inner for source in node.all_input_nodes}
        if weight.target is WEIGHT_OP and set(ordered) <= read:
            return Region(key, ordered, weight, (*_constants_of(inner, constants), *inner))
    raise FoldError(
        f"the cores of {key!r} do not lead to one weight in this graph, wanted a compose subgraph; "
        "pass the file that opdf-compile expand wrote"
    )


def _between(weight: Node, members: list[Node]) -> tuple[Node, ...]:
    """The members that `weight` depends on, and itself, in graph order."""
    needed = {weight}
    for node in reversed(members):
        if node in needed:
            needed.update(node.all_input_nodes)
    return tuple(node for node in members if node in needed)


def _constants_of(inner: tuple[Node, ...], constants: set[Node]) -> tuple[Node, ...]:
    """The constants that these nodes read, each after what it is made of."""
    ordered: dict[Node, None] = {}

    def visit(node: Node) -> None:
        for source in node.all_input_nodes:
            if source in constants and source not in ordered:
                visit(source)
                ordered[source] = None

    for node in inner:
        visit(node)
    return tuple(ordered)


def evaluate(module: GraphModule, region: Region) -> Tensor:
    """The weight of a region, computed in float64 whatever casts the graph holds."""
    values: dict[Node, Any] = {}
    for core in region.cores:
        tensor = attribute(module, str(core.target))
        assert isinstance(tensor, Tensor)
        values[core] = tensor.detach().double()

    def value(argument: Any) -> Any:
        if isinstance(argument, Node):
            return values[argument]
        if isinstance(argument, torch.dtype) and argument.is_floating_point:
            return torch.float64
        return argument

    for node in region.inner:
        args, kwargs = map_aggregate((node.args, node.kwargs), value)
        values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    result: Tensor = values[region.weight]
    return result


def weight_dtype(region: Region) -> torch.dtype:
    """The dtype that the region's closing cast gives the weight."""
    dtype = region.weight.args[1]
    assert isinstance(dtype, torch.dtype)
    return dtype
