"""fold-branches: each region of linear branches becomes one convolution or Linear layer.

    y = bn_1(conv_3(x)) + bn_2(conv_1(x)) + bn_3(x)   ->   y = conv_3(x, W, b)

W and b are computed in float64 and rounded once. The structure of the result depends on no value.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from opdf_compile.errors import InternalError
from opdf_compile.graph import CONVOLVE, arguments, attribute, owner, set_attribute
from opdf_compile.passes.branch_regions import (
    BranchRegion,
    RegionFinder,
    RegionRefusal,
    linear_map,
)
from opdf_compile.passes.constants import Constants
from opdf_compile.passes.contract import GraphChange, GraphPass, PassResult
from opdf_compile.passes.op_maps import OpMaps
from opdf_compile.tensor import LinearMap

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class BranchFold(GraphChange):
    """One region that was folded.

    Attributes:
        branches: How many paths met in it.
        layers: Convolutions and Linear layers that it held.
        norms: Batch norms that it held.
        operations: Nodes that it held; one is left.
        replaced: Names of the tensors that it read.
    """

    branches: int
    layers: int
    norms: int
    operations: int
    replaced: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class BranchResult(PassResult):
    """What the pass returns.

    Attributes:
        refused: Branches that meet and stay as they are.
    """

    refused: tuple[RegionRefusal, ...] = ()


@dataclass(frozen=True)
class FoldBranches(GraphPass):
    """Fold the branches of an eval graph.

    Attributes:
        norms: Fold a batch norm or a scale behind a lone layer too.
    """

    norms: bool = False

    def call(self, module: GraphModule) -> BranchResult:
        """Fold every region of the graph."""
        finder = RegionFinder(module, norms=self.norms)
        regions = list(finder)
        constants, taken = Constants(module), set[str]()
        changes: list[GraphChange] = []
        # All numbers first: one that two regions read is overwritten by neither.
        maps = [
            linear_map(r, OpMaps(r.axes, constants, finder.varying), finder.varying)
            for r in regions
        ]
        made: dict[Node, Node] = {}  # A region's source may be another region's root.
        for region, found in reversed(list(zip(regions, maps, strict=True))):
            key = _key(module, region, taken)
            changes.append(_change(region, key))
            source = made.get(region.source, region.source)
            made[region.root] = _replace(module, region, found, key, source)
        module.graph.eliminate_dead_code()  # What computed weights.
        _drop_unread(module, {key for region in regions for key in region.keys})
        return BranchResult(module, tuple(changes), tuple(finder.refused))

    def ensures(self, result: PassResult) -> None:
        """A second call would find nothing.

        Raises:
            InternalError: It would.
        """
        left = next(iter(RegionFinder(result.module, norms=self.norms)), None)
        if left is not None:
            raise InternalError(
                f"branches that meet in {left.root.name} were left; please report it"
            )


def _change(region: BranchRegion, key: str) -> BranchFold:
    branches, layers, norms = region.branches, len(region.layers), region.norms
    what = f"folded from {branches} branches with {layers} layers and {norms} batch norms"
    return BranchFold(key, what, branches, layers, norms, len(region.inside), region.keys)


def _key(module: GraphModule, region: BranchRegion, taken: set[str]) -> str:
    """A name for the new weight: that of the only one, or of what holds all parts."""
    weights = [arguments(layer)["weight"] for layer in region.layers]
    if len(weights) == 1 and weights[0].op == "get_attr" and region.branches == 1:
        wanted = str(weights[0].target)
    else:
        owners = [key.split(".")[:-1] for key in region.keys]
        wanted = ".".join([*os.path.commonprefix(owners), "weight"])
    holder = wanted.rpartition(".")[0]
    others = (".".join(filter(None, [holder, f"folded_{i}", "weight"])) for i in itertools.count())
    tries = itertools.chain([wanted], others)
    key = next(k for k in tries if k not in taken and _is_free(module, k, region))
    taken.add(key)
    return key


def _bias_key(key: str) -> str:
    return ".".join([*key.split(".")[:-1], "bias"])


def _is_free(module: GraphModule, key: str, region: BranchRegion) -> bool:
    """Whether a weight and its bias may take a name: nobody's, or the region's own."""
    names = {key, _bias_key(key)}
    readers = [n for n in module.graph.nodes if n.op == "get_attr" and n.target in names]
    own = all(n.target in region.keys and set(n.users) <= set(region.inside) for n in readers)
    return own and (bool(readers) or all(attribute(module, name) is None for name in names))


def _replace(
    module: GraphModule, region: BranchRegion, found: LinearMap, key: str, source: Node
) -> Node:
    """One node in the place of a region; what it replaces is erased."""
    dtype = region.root.meta["val"].dtype
    first = next(node for node in region.inside if source in node.all_input_nodes)
    kept = {key: found.numbers.kernel}
    if found.biased:
        kept[_bias_key(key)] = found.numbers.bias
    trained = any(p.requires_grad for p in _parameters(module, region))
    for name, value in kept.items():
        rounded = nn.Parameter(value.to(dtype).contiguous(), requires_grad=trained)
        set_attribute(module, name, rounded)
    with module.graph.inserting_before(first):
        read = [module.graph.get_attr(name) for name in kept]
        weight, bias = read[0], read[1] if found.biased else None
        target: Any = _ATEN.linear.default
        options: tuple[Any, ...] = ()
        if region.axes:
            target = CONVOLVE[region.axes]
            options = (
                list(found.stride),
                list(found.padding),
                list(found.dilation),
                found.groups,
            )
        node = module.graph.call_function(target, (source, weight, bias, *options))
    node.meta = dict(region.root.meta)
    for attr_node, name in zip(read, kept, strict=True):
        attr_node.meta = {"val": region.root.meta["val"].new_empty(kept[name].shape)}
    region.root.replace_all_uses_with(node)
    for dead in reversed(region.inside):
        module.graph.erase_node(dead)
    return node


def _drop_unread(module: GraphModule, keys: set[str]) -> None:
    """Remove tensors that nothing reads any more, and what held them."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for key in keys - read:
        holder, name = owner(module, key)
        delattr(holder, name)
    module.delete_all_unused_submodules()


def _parameters(module: GraphModule, region: BranchRegion) -> list[nn.Parameter]:
    found = (attribute(module, key) for key in region.keys)
    return [value for value in found if isinstance(value, nn.Parameter)]
