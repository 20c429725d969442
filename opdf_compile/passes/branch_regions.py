"""Regions of an eval graph that are one convolution of one value, or one Linear layer of it.

    y = bn_1(conv_3(x)) + bn_2(conv_1(x)) + bn_3(x)        root: the last sum, source: x

From a root the walk goes against the flow, always on at the latest node that is linear and read
inside of the region only; each time that one node is left, that node is a source. The farthest
source is taken whose region is one convolution (`LinearMap`) and no dearer than its parts: a chain
of a narrow and a wide layer stays as it is, because folding would make it slower.

What decides are forms and shapes, never values, so a trained student and an untouched one fold to
the same structure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import GraphModule, Node

from opdf_compile.errors import FoldError
from opdf_compile.graph import attribute, is_view
from opdf_compile.passes.constants import Constants
from opdf_compile.passes.dependence import Dependence
from opdf_compile.passes.linear_ops import (
    CONVOLUTIONS,
    DROPOUTS,
    LINEAR,
    NORM,
    PRODUCTS,
    arguments,
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


@dataclass(frozen=True, eq=False)
class _Walk:
    """What was seen from one root.

    Attributes:
        sources: From near to far, each node that all paths lead to, with what lies after it.
        inside: Every node that was passed.
        ends: The nodes that were not, each with the reason.
    """

    sources: list[tuple[Node, tuple[Node, ...]]] = field(default_factory=list)
    inside: list[Node] = field(default_factory=list)
    ends: dict[Node, str] = field(default_factory=dict)

    @property
    def why_apart(self) -> str | None:
        """Why several layers that meet do not come from one node; None where they do."""
        layers = sum(is_layer(node) for node in (*self.inside, *self.ends))
        if len(self.ends) < 2 or layers < 2:
            return None
        return f"joins branches that end at different places: {next(iter(self.ends.values()))}"


class RegionFinder:
    """Finds the regions of one graph.

    Args:
        module: An eval graph with recorded values; it is only read.
        norms: Whether a batch norm or a scale behind a lone layer makes a region too.
    """

    def __init__(self, module: GraphModule, *, norms: bool = False) -> None:
        """Nothing is looked at yet."""
        self._module, self._with_norms = module, norms
        self._order = {node: place for place, node in enumerate(module.graph.nodes)}
        self._depends = Dependence(module.graph)
        self.varying = self._depends.varying
        self.refused: list[RegionRefusal] = []

    def __iter__(self) -> Iterator[BranchRegion]:
        """The regions, from the outputs to the inputs; `refused` is whole at the end."""
        taken: set[Node] = set()
        told: set[Node] = set()
        for node in reversed(self._order):
            if node in taken or not flow(node, self.varying):
                continue
            walk = self._walk(node)
            region, reason = self._largest(node, walk)
            if region is not None:
                taken.update(region.inside)
                yield region
            elif reason is not None and node not in told:
                told.update(walk.inside)
                self.refused.append(RegionRefusal(str(node.name), reason))

    def _largest(self, root: Node, walk: _Walk) -> tuple[BranchRegion | None, str | None]:
        """The largest region that ends in a root; or None, and why branches that meet are none."""
        reason = walk.why_apart
        for source, nodes in reversed(walk.sources):
            try:
                region = self._region(root, source, nodes)
                if region is not None:
                    self._require_gain(region)
                    return region, None
            except FoldError as error:
                reason = reason or f"is no one layer: {error}"
        return None, reason

    def _walk(self, root: Node) -> _Walk:
        """Against the flow from a root, the latest node first."""
        walk, frontier = _Walk(), {root}
        while frontier - walk.ends.keys():
            last = max(frontier - walk.ends.keys(), key=self._order.__getitem__)
            end = self._why_end(last, walk.inside)
            if end is not None:
                walk.ends[last] = end
                continue
            walk.inside.append(last)
            frontier.remove(last)
            frontier.update(operand for operand, _sign in flow(last, self.varying))
            if len(frontier) == 1:
                walk.sources.append((next(iter(frontier)), tuple(reversed(walk.inside))))
        return walk

    def _why_end(self, node: Node, inside: list[Node]) -> str | None:
        """Why the walk does not go on through a node; None if it does."""
        if not flow(node, self.varying):
            return f"{node.name} ({node.target}) is not linear with constants of its own"
        outside = [user for user in node.users if user not in inside]
        if inside and outside:
            return f"{node.name} is read by {outside[0].name} too"
        written = node.args[0] if writes(node) else None
        if isinstance(written, Node):
            shared = len(written.users) > 1 or written.target in DROPOUTS
            if shared or written.op == "placeholder":
                return f"{node.name} writes to {written.name}, which others may read"
        return None

    def _region(self, root: Node, source: Node, nodes: tuple[Node, ...]) -> BranchRegion | None:
        """The region between two nodes; None where there is nothing to fold."""
        kinds = {0 if n.target is LINEAR else CONVOLUTIONS[n.target] for n in nodes if is_layer(n)}
        if not kinds:
            return None
        if len(kinds) > 1:
            raise FoldError("convolutions and Linear layers of unlike axes stand in one region")
        region = BranchRegion(root, source, nodes, kinds.pop(), self._keys(nodes))
        computed = any(self._is_computed(arguments(n)["weight"]) for n in region.layers)
        several = region.branches > 1 or len(region.layers) > 1 or computed
        scaled = self._with_norms and any(n.target is NORM or n.target in PRODUCTS for n in nodes)
        return region if several or scaled else None

    def _is_computed(self, weight: Node) -> bool:
        """Whether a weight is more than a view of a parameter, which may be tied to others."""
        return any(n.op != "get_attr" and not is_view(n) for n in self._depends.sources(weight))

    def _require_gain(self, region: BranchRegion) -> None:
        """Refuse a region that is no one layer, or would cost more than what it replaces."""
        self._require_unwritten(region)
        parts = OpMaps(region.axes, Constants(self._module, "meta"), self.varying)
        whole = linear_map(region, parts, self.varying)
        costs = (found.cost for node in region.inside if (found := parts(node)) is not None)
        before = sum(costs)
        if whole.cost > before:
            raise FoldError(
                f"it would cost {whole.cost:,} multiplications per place, its parts cost {before:,}"
            )

    def _require_unwritten(self, region: BranchRegion) -> None:
        """The source must hold one value for all that read it."""
        places = [self._order[n] for n in region.source.users if n in region.inside]
        for writer in self._depends.writers(region.source):
            if min(places) <= self._order[writer] <= max(places):
                raise FoldError(
                    f"{writer.name} overwrites {region.source.name} between the branches"
                )

    def _keys(self, nodes: tuple[Node, ...]) -> tuple[str, ...]:
        """Names of all parameters and buffers that some nodes are computed from."""
        constants = {o for node in nodes for o in node.all_input_nodes if o not in self.varying}
        read = {n for constant in constants for n in self._depends.sources(constant)}
        targets = [str(n.target) for n in self._order if n in read and n.op == "get_attr"]
        tensors = [t for t in targets if isinstance(attribute(self._module, t), Tensor)]
        return tuple(dict.fromkeys(tensors))


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
