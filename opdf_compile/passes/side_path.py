"""add side paths: a frozen Linear gets a low-rank path beside it, which is trained.

    y = linear(x, W, b)   ->   y = linear(x, W, b) + linear(linear(x, A), B)

A is (rank, in), B is (out, rank). The path takes the op's own input, so that its gradients cost two
thin products, and none of them has the size of W. The form is that of LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule, Node

from opdf_compile.errors import InternalError
from opdf_compile.graph import set_attribute
from opdf_compile.passes.contract import GraphChange, GraphPass, PassResult

LINEAR = torch.ops.aten.linear.default
_ADD = torch.ops.aten.add.Tensor
_CAST = torch.ops.aten.to.dtype
_FACTORS = ("down", "up")


@dataclass(frozen=True)
class SidePath:
    """What stands beside one weight.

    Attributes:
        nodes: Names of the linear ops that read the weight.
        down: ``(rank, in)``.
        up: ``(out, rank)``.
        dtype: Of the weight, in which the path computes.
    """

    nodes: tuple[str, ...]
    down: nn.Parameter
    up: nn.Parameter
    dtype: torch.dtype


@dataclass(frozen=True)
class AddSidePaths(GraphPass):
    """Put a side path beside every use of the weights that are named.

    Attributes:
        paths: By the weight's name.
    """

    paths: Mapping[str, SidePath]

    def call(self, module: GraphModule) -> PassResult:
        """Add each path behind each op that reads its weight."""
        nodes = {node.name: node for node in module.graph.nodes}
        changes = []
        for key, path in self.paths.items():
            names = [f"{key}_{part}" for part in _FACTORS]
            for name, factor in zip(names, (path.down, path.up), strict=True):
                set_attribute(module, name, factor)
            for place in path.nodes:
                _beside(module, nodes[place], names, path.dtype)
            changes.append(GraphChange(key, f"a path of rank {len(path.down)} beside it"))
        return PassResult(module, tuple(changes))

    def ensures(self, result: PassResult) -> None:
        """Every factor is read as often as its weight was.

        Raises:
            InternalError: One is not.
        """
        read = [str(node.target) for node in result.module.graph.nodes if node.op == "get_attr"]
        for key, path in self.paths.items():
            if any(read.count(f"{key}_{part}") != len(path.nodes) for part in _FACTORS):
                raise InternalError(f"no path was put beside {key!r}; please report it")


def _beside(module: GraphModule, linear: Node, names: list[str], dtype: torch.dtype) -> None:
    """The path of one op; what read the op's result reads the sum."""
    graph = module.graph
    found = linear.args[0]
    with graph.inserting_after(linear):
        total = graph.call_function(_ADD, (linear, linear))
    linear.replace_all_uses_with(total)
    with graph.inserting_before(total):
        for name in names:
            factor = graph.call_function(_CAST, (graph.get_attr(name), dtype))
            found = graph.call_function(LINEAR, (found, factor))
        total.args = (linear, found)
