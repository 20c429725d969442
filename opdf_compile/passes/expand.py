"""expand: every get_attr of a planned weight becomes  cores -> compose -> weight.

    W = get_attr key;  op(.., W, ..)   ->   T_k = get_attr key_cores.k;  W' = compose(T_1..T_n);
                                            op(.., W', ..)

All readers change over, so a tied embedding reads the composed weight too. The weight is composed
once per graph, whatever the number of names and uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule, Node

from opdf_compile.errors import InternalError
from opdf_compile.graph import set_attribute
from opdf_compile.passes.compose_graph import insert_compose
from opdf_compile.passes.contract import GraphChange, GraphPass, PassResult
from opdf_compile.planning import Plan


@dataclass(frozen=True)
class Expand(GraphPass):
    """Replace planned weights by compose subgraphs.

    Attributes:
        plan: What to expand.
        cores: For each key the ParameterList of its cores.
    """

    plan: Plan
    cores: Mapping[str, nn.ParameterList]

    def call(self, module: GraphModule) -> PassResult:
        """Rewrite every get_attr of a planned weight."""
        changes = []
        readers = self._readers(module)
        for entry in self.plan.entries:
            nodes = readers.get(entry.key, [])
            live = [node for node in nodes if node.users]
            if live:
                cores = self.cores[entry.key]
                set_attribute(module, f"{entry.key}_cores", cores)
                weight = insert_compose(module.graph, entry, live[0], cores[0].device)
                for node in live:
                    node.replace_all_uses_with(weight)
                changes.append(GraphChange(entry.key, f"composed of {len(entry.core_names)} cores"))
            for node in nodes:
                module.graph.erase_node(node)
        return PassResult(module, tuple(changes))

    def _readers(self, module: GraphModule) -> dict[str, list[Node]]:
        home = {name: e.key for e in self.plan.entries for name in (e.key, *e.aliases)}
        readers: dict[str, list[Node]] = {}
        for node in module.graph.nodes:
            if node.op == "get_attr" and str(node.target) in home:
                readers.setdefault(home[str(node.target)], []).append(node)
        return readers

    def ensures(self, result: PassResult) -> None:
        """No planned weight is read any more.

        Raises:
            InternalError: One is.
        """
        left = self._readers(result.module)
        if left:
            raise InternalError(f"expand left {next(iter(left))!r} in the graph; please report it")
