"""fold: the compose subgraph of every weight becomes a get_attr of the weight.

T_k = get_attr key_cores.k;  W' = compose(T_1..T_n);  op(.., W', ..)   ->
W = get_attr key;  op(.., W, ..)          W = round(compose in float64) to the weight's dtype
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule, Node

from opdf_compile.errors import InternalError
from opdf_compile.graph import set_attribute
from opdf_compile.passes.compose_graph import WEIGHT_MARK
from opdf_compile.passes.contract import GraphChange, GraphPass, PassResult
from opdf_compile.passes.regions import (
    Region,
    core_key,
    evaluate,
    find_regions,
    weight_dtype,
)
from opdf_compile.planning import rounded_weight


@dataclass(frozen=True)
class Fold(GraphPass):
    """Replace compose subgraphs by plain weights; needs no plan."""

    def call(self, module: GraphModule) -> PassResult:
        """Fold every region of the graph."""
        changes = []
        for region in find_regions(module):
            set_attribute(module, region.key, folded_weight(module, region))
            with module.graph.inserting_before(region.cores[0]):
                node = module.graph.get_attr(region.key)
            node.meta = {k: v for k, v in region.weight.meta.items() if k != WEIGHT_MARK}
            region.weight.replace_all_uses_with(node)
            for dead in (*reversed(region.inner), *region.cores):
                erase_assertions(module, dead)
                if not dead.users:  # A constant may serve two weights; the last one takes it along.
                    module.graph.erase_node(dead)
            changes.append(GraphChange(region.key, f"folded from {len(region.cores)} cores"))
        module.delete_all_unused_submodules()
        return PassResult(module, tuple(changes))

    def ensures(self, result: PassResult) -> None:
        """No core is read any more.

        Raises:
            InternalError: One is.
        """
        for node in result.module.graph.nodes:
            if node.op == "get_attr" and core_key(str(node.target)) is not None:
                raise InternalError(f"fold left {node.target!r} in the graph; please report it")


def erase_assertions(module: GraphModule, node: Node) -> None:
    """Erase the assertions on a node's dtype that torch.export puts before casts."""
    for user in list(node.users):
        if user.target is torch.ops.aten._assert_tensor_metadata.default:
            module.graph.erase_node(user)


def folded_weight(module: GraphModule, region: Region) -> nn.Parameter:
    """The weight of a region: composed in float64, rounded once.

    Raises:
        FoldError: The cores hold NaN or infinity.
    """
    value = rounded_weight(region.key, evaluate(module, region), weight_dtype(region))
    return nn.Parameter(value.contiguous())
