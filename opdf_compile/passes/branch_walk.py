"""The walk against the flow of a graph, from a node over all that it is a linear image of.

    x -> conv -> + -> bn -> y        from y: bn, +, conv, and x is the one source
      ---------->

It goes on at the latest node that is linear and read by passed nodes only. A node that it does not
pass is an end. Each time that one node is left to look at and there is no end, that is a source:
what was passed until then is a map of it alone. The cost is a few steps per passed node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush

from torch.fx import Graph, Node

from opdf_compile.passes.linear_ops import DROPOUTS, flow, is_layer, writes


@dataclass(frozen=True, eq=False)
class Walk:
    """What was seen from one node.

    Attributes:
        inside: Every node that was passed, from late to early; the root is the first.
        sources: By how many of them lie after it, each source, from near to far.
        ends: The nodes that were not passed, each with the reason.
    """

    inside: list[Node] = field(default_factory=list)
    sources: dict[int, Node] = field(default_factory=dict)
    ends: dict[Node, str] = field(default_factory=dict)

    @property
    def why_apart(self) -> str | None:
        """Why several layers that meet do not come from one node; None where they do."""
        layers = sum(is_layer(node) for node in (*self.inside, *self.ends))
        if len(self.ends) < 2 or layers < 2:
            return None
        return f"joins branches that end at different places: {next(iter(self.ends.values()))}"


class Walker:
    """Walks over one graph.

    Args:
        graph: It is only read.
        varying: The nodes that depend on an input.
    """

    def __init__(self, graph: Graph, varying: frozenset[Node]) -> None:
        """Number the nodes."""
        self._nodes, self._varying = list(graph.nodes), varying
        self.order = {node: place for place, node in enumerate(self._nodes)}

    def __call__(self, root: Node) -> Walk:
        """Against the flow from a node, the latest node first."""
        walk, seen = Walk(), {root}
        passed: set[Node] = set()
        waiting = [-self.order[root]]  # The heap gives the least number: that of the latest node.
        while waiting:
            last = self._nodes[-heappop(waiting)]
            end = self._why_end(last, passed)
            if end is not None:
                walk.ends[last] = end
                continue
            walk.inside.append(last)
            passed.add(last)
            fresh = {operand for operand, _sign in flow(last, self._varying)} - seen
            seen |= fresh
            for operand in fresh:
                heappush(waiting, -self.order[operand])
            # An end stays beside what is left: what comes before it does not lead to it.
            if len(waiting) == 1 and not walk.ends:
                walk.sources[len(walk.inside)] = self._nodes[-waiting[0]]
        return walk

    def _why_end(self, node: Node, passed: set[Node]) -> str | None:
        """Why the walk does not go on through a node; None if it does."""
        if not flow(node, self._varying):
            return f"{node.name} ({node.target}) is not linear with constants of its own"
        outside = [user for user in node.users if user not in passed]
        if passed and outside:
            return f"{node.name} is read by {outside[0].name} too"
        written = node.args[0] if writes(node) else None
        if isinstance(written, Node):
            shared = len(written.users) > 1 or written.target in DROPOUTS
            if shared or written.op == "placeholder":
                return f"{node.name} writes to {written.name}, which others may read"
        return None
