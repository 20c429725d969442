"""Regions of an eval graph that are one convolution of one value, or one Linear layer of it.

    y = bn_1(conv_3(x)) + bn_2(conv_1(x)) + bn_3(x)        root: the last sum, source: x

A root is walked from against the flow (`branch_walk`). The farthest source is taken whose region is
one convolution (`LinearMap`) and no dearer than its parts: a chain of a narrow and a wide layer
stays as it is, because folding would make it slower.

What decides are forms and shapes, never values, so a trained student and an untouched one fold to
the same structure.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from torch import Tensor
from torch.fx import GraphModule, Node

from opdf_compile.errors import FoldError
from opdf_compile.graph import CONVOLUTIONS, arguments, attribute, is_view
from opdf_compile.passes.branch_walk import Walk, Walker
from opdf_compile.passes.constants import Constants
from opdf_compile.passes.dependence import Dependence
from opdf_compile.passes.linear_ops import (
    LINEAR,
    NORM,
    PRODUCTS,
    flow,
    is_layer,
    writes,
)
from opdf_compile.passes.op_maps import OpMaps
from opdf_compile.tensor import LinearMap


@dataclass(frozen=True, eq=False)
class BranchRegion:
    """A part of a graph that one node shall replace.

    Attributes:
        root: Its value.
        source: What it is a linear map of.
        inside: All nodes from after the source to the root, in graph order.
        axes: Spatial axes; 0 for a Linear layer.
        keys: Names of the parameters and buffers that it reads.
    """

    root: Node
    source: Node
    inside: tuple[Node, ...]
    axes: int
    keys: tuple[str, ...]

    @property
    def layers(self) -> tuple[Node, ...]:
        """Its convolutions and Linear layers."""
        return tuple(node for node in self.inside if is_layer(node))

    @property
    def norms(self) -> int:
        """How many batch norms it holds."""
        return sum(node.target is NORM for node in self.inside)

    @property
    def branches(self) -> int:
        """How many paths its sums join."""
        inside = set(self.inside) | {self.source}
        joined = (len([o for o in n.all_input_nodes if o in inside]) - 1 for n in self.inside)
        return 1 + sum(extra for extra in joined if extra > 0)


@dataclass(frozen=True)
class RegionRefusal:
    """Branches that meet and stay as they are.

    Attributes:
        key: The node where they meet.
        reason: Why, as the end of a sentence about it.
    """

    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key} {self.reason}"


class RegionFinder:
    """Finds the regions of one graph.

    The work grows with the graph, also where a long run of ops by channel (x * c, x + c, a norm)
    holds no region: such an op changes neither whether a map is one layer nor what it costs.

    Args:
        module: An eval graph with recorded values; it is only read.
        norms: Whether a batch norm or a scale behind a lone layer makes a region too.
    """

    def __init__(self, module: GraphModule, *, norms: bool = False) -> None:
        """Nothing is looked at yet."""
        self._module, self._with_norms = module, norms
        self._depends = Dependence(module.graph)
        self.varying = self._depends.varying
        self._walk = Walker(module.graph, self.varying)
        self._order = self._walk.order
        constants = Constants(module, "meta")
        self._maps = cache(lambda axes: OpMaps(axes, constants, self.varying))
        self._shifts = cache(self._shift)
        self.refused: list[RegionRefusal] = []

    def __iter__(self) -> Iterator[BranchRegion]:
        """The regions, from the outputs to the inputs; `refused` is whole at the end."""
        done: set[Node] = set()
        told: set[Node] = set()
        for node in reversed(self._order):
            if node in done or not flow(node, self.varying):
                continue
            walk = self._walk(node)
            region, reason = self._largest(walk)
            if region is not None:
                done.update(region.inside)
                yield region
                continue
            done.update(self._as_futile(walk))
            if reason is not None and node not in told:
                told.update(walk.inside)
                self.refused.append(RegionRefusal(str(node.name), reason))

    def _largest(self, walk: Walk) -> tuple[BranchRegion | None, str | None]:
        """The largest region that ends in a root; or None, and why branches that meet are none."""
        reason = walk.why_apart
        for size in self._candidates(walk):
            try:
                return self._region(walk, size), None
            except FoldError as error:
                reason = reason or f"is no one layer: {error}"
        return None, reason

    def _as_futile(self, walk: Walk) -> Iterator[Node]:
        """Nodes in which no region ends since none ends in the root of a walk.

        Where it passed no layer no walk from inside of it does. And what folds up to an op by
        channel, folds together with it.
        """
        axes = next(map(_axes, filter(is_layer, walk.inside)), None)
        if axes is None:
            yield from walk.inside
            return
        for size, (node, operand) in enumerate(itertools.pairwise(walk.inside), 1):
            if self._shifts(axes, node) is None or size not in walk.sources:
                return
            yield operand

    def _candidates(self, walk: Walk) -> Iterator[int]:
        """Sizes of the regions to try, the largest first.

        A run of ops by channel that a region starts with is one scale, with or without a shift. A
        region whose run is shorter, and of the same kind, is one layer only if the longer one is.
        """
        least = self._least(walk.inside)
        sizes = [size for size in walk.sources if size >= least]
        if not sizes:
            return
        yield sizes[-1]
        axes = next(map(_axes, filter(is_layer, walk.inside)))
        shifted: dict[int, bool] = {}
        for size in walk.sources:
            own = self._shifts(axes, walk.inside[size - 1])
            shifted[size] = own is not None and (own or shifted.get(size - 1, False))
        for size in reversed(sizes[:-1]):
            first = walk.inside[size]
            alike = shifted.get(size + 1) == shifted[size] and not writes(first)
            covered = alike and self._shifts(axes, first) is not None
            # No region starts with an op that overwrites its source.
            if not covered and not writes(walk.inside[size - 1]):
                yield size

    def _least(self, inside: list[Node]) -> int:
        """How many nodes a region of a walk needs, so that there is something to fold."""
        layers = 0
        several = computed = scaled = False
        for size, node in enumerate(inside, 1):
            several |= len({operand for operand, _sign in flow(node, self.varying)}) > 1
            scaled |= self._with_norms and (node.target is NORM or node.target in PRODUCTS)
            if is_layer(node):
                layers += 1
                computed |= self._is_computed(arguments(node)["weight"])
            if layers > 1 or (layers and (several or computed or scaled)):
                return size
        return len(inside) + 1

    def _shift(self, axes: int, node: Node) -> bool | None:
        """Whether an op by channel of one value adds to it; None for layers and all other ops."""
        if is_layer(node):
            return None
        try:
            own = self._maps(axes)(node)
        except FoldError:
            return None
        if own is None:
            return False
        return own.biased if own.is_per_channel else None

    def _region(self, walk: Walk, size: int) -> BranchRegion:
        """The region of so many nodes, which is one layer and no dearer than its parts.

        Raises:
            FoldError: It is none, or dearer; the message is the reason.
        """
        nodes = tuple(reversed(walk.inside[:size]))
        kinds = {_axes(node) for node in nodes if is_layer(node)}
        if len(kinds) > 1:
            raise FoldError("convolutions and Linear layers of unlike axes stand in one region")
        region = BranchRegion(walk.inside[0], walk.sources[size], nodes, kinds.pop(), keys=())
        self._require_unwritten(region)
        parts = self._maps(region.axes)
        whole = linear_map(region, parts, self.varying)
        before = sum(found.cost for node in nodes if (found := parts(node)) is not None)
        if whole.cost > before:
            raise FoldError(
                f"it would cost {whole.cost:,} multiplications per place, its parts cost {before:,}"
            )
        return replace(region, keys=self._keys(nodes))

    def _is_computed(self, weight: Node) -> bool:
        """Whether a weight is more than a view of a parameter, which may be tied to others."""
        return any(n.op != "get_attr" and not is_view(n) for n in self._depends.sources(weight))

    def _require_unwritten(self, region: BranchRegion) -> None:
        """The source must hold one value for all that read it."""
        inside, base = set(region.inside), self._depends.base
        # A dropout in eval hands the source on: what reads that, reads it too.
        held = [n for n in (region.source, *inside) if base(n) is base(region.source)]
        places = [self._order[user] for node in held for user in node.users if user in inside]
        for writer in self._depends.writers(region.source):
            if min(places) <= self._order[writer] <= max(places):
                raise FoldError(
                    f"{writer.name} overwrites {region.source.name} between the branches"
                )

    def _keys(self, nodes: tuple[Node, ...]) -> tuple[str, ...]:
        """Names of all parameters and buffers that some nodes are computed from."""
        constants = {o for node in nodes for o in node.all_input_nodes if o not in self.varying}
        read = {n for constant in constants for n in self._depends.sources(constant)}
        ordered = sorted(read, key=self._order.__getitem__)
        targets = [str(n.target) for n in ordered if n.op == "get_attr"]
        tensors = [t for t in targets if isinstance(attribute(self._module, t), Tensor)]
        return tuple(dict.fromkeys(tensors))


def _axes(layer: Node) -> int:
    """Spatial axes of a layer; 0 for a Linear one."""
    return 0 if layer.target is LINEAR else CONVOLUTIONS[layer.target]


def linear_map(region: BranchRegion, maps: OpMaps, varying: frozenset[Node]) -> LinearMap:
    """The one map that a region is.

    Args:
        region: Its nodes.
        maps: Reads the map of each.
        varying: The nodes that depend on an input.

    Raises:
        FoldError: It is none; the message is the reason.
    """
    # None stands for the source itself: composing with an identity is a product for nothing.
    known: dict[Node, LinearMap | None] = {region.source: None}
    for node in region.inside:
        parts = [(known[operand], sign) for operand, sign in flow(node, varying)]
        total: LinearMap | None = None
        if len(parts) > 1 or parts[0] != (None, 1):
            same = maps.identity(region.source)
            signed = [(p or same) if s > 0 else -(p or same) for p, s in parts]
            total = signed[0]
            for other in signed[1:]:
                total = total + other
        own = maps(node)
        if own is not None:
            total = own if total is None else own.after(total)
        known[node] = total
    found = known[region.root]
    return maps.identity(region.source) if found is None else found
