"""branch: beside every planned site its branches, added to what its norm gives.

    y = batch_norm(conv(x, W))   ->   y = batch_norm(conv(x, W)) + sum branch(x)

The branches read x itself. Their tensors are those of a ModuleDict under ``W_branches``; in the
train graph their norms take the statistics of the batch and move their own, as the site's does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from opdf_compile.errors import InternalError
from opdf_compile.graph import CONVOLVE, Phase, SiteNodes, SiteView, set_attribute
from opdf_compile.parametrizations import Average, Branch, Conv, Norm, branch_of
from opdf_compile.passes.contract import GraphChange, GraphPass, PassResult
from opdf_compile.planning import Plan, SiteEntry

aten = torch.ops.aten

_MEAN = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}


@dataclass(frozen=True)
class AddBranches(GraphPass):
    """Put branches beside the sites of a plan.

    Attributes:
        plan: Its sites.
        phase: Which graph it is.
        layers: For each key the branches' modules.
    """

    plan: Plan
    phase: Phase
    layers: Mapping[str, nn.ModuleDict]

    def call(self, module: GraphModule) -> PassResult:
        """Add the branches of every site."""
        view = SiteView(module)
        found = {site.key: view.nodes(site.key, self.phase) for site in self.plan.sites}
        changes = []
        for site in self.plan.sites:
            nodes = found[site.key]
            if not isinstance(nodes, SiteNodes):
                raise InternalError(f"the site {site.key!r} {nodes}; please report it")
            set_attribute(module, site.branches_name, self.layers[site.key])
            self._add(module.graph, site, nodes)
            names = site.modes.replace("+", ", ")
            changes.append(GraphChange(site.key, f"stands beside {names}"))
        return PassResult(module, tuple(changes))

    def _add(self, graph: Graph, site: SiteEntry, nodes: SiteNodes) -> None:
        readers = list(nodes.norm.users)
        last, made = nodes.norm, []
        # Before the convolution: what comes after it may write into their common input.
        with graph.inserting_before(nodes.convolution):
            for name in site.spec.branches:
                emitter = _Emitter(graph, f"{site.branches_name}.{name}", site, self.phase)
                made.append(emitter.emit(branch_of(name, site.spec), nodes.input))
        for branch in made:
            with graph.inserting_after(last):
                last = graph.call_function(aten.add.Tensor, (last, branch))
        for reader in readers:
            reader.replace_input_with(nodes.norm, last)


@dataclass(frozen=True, eq=False)
class _Emitter:
    """Writes the layers of one branch into a graph."""

    graph: Graph
    prefix: str
    site: SiteEntry
    phase: Phase

    def emit(self, branch: Branch, x: Node) -> Node:
        for name, step in branch.steps:
            if isinstance(step, Conv):
                x = self._conv(name, step, x)
            elif isinstance(step, Average):
                sizes = (list(step.kernel), list(step.stride), list(step.padding))
                x = self._call(_MEAN[len(step.kernel)], x, *sizes)
            else:
                x = self._norm(name, step, x)
        return x

    def _conv(self, name: str, step: Conv, x: Node) -> Node:
        settings = (list(step.stride), list(step.padding), list(step.dilation), step.groups)
        weight = self._tensor(name, "weight")
        made = self._call(CONVOLVE[len(step.stride)], x, weight, None, *settings)
        return self._call(aten.add.Tensor, made, x) if step.plus_input else made

    def _norm(self, name: str, step: Norm, x: Node) -> Node:
        spec, training = self.site.spec, self.phase == "train"
        gamma, beta = self._tensor(name, "weight"), self._tensor(name, "bias")
        mean, var = self._tensor(name, "running_mean"), self._tensor(name, "running_var")
        # Read in both phases, so that both programs of a file hold the same tensors.
        counter = self._tensor(name, "num_batches_tracked")
        if training:
            self._call(aten.add_.Tensor, counter, 1)
        statistics = (mean, var, training, spec.momentum, spec.eps, True)
        made = self._call(aten.batch_norm.default, x, gamma, beta, *statistics)
        if not any(step.border):
            return made
        widened = self._call(aten.add.Scalar, var, spec.eps)
        scale = self._call(aten.mul.Tensor, gamma, self._call(aten.rsqrt.default, widened))
        # A copy: the next forward moves the buffer, and this one's backward still reads it.
        lowered = self._call(aten.mul.Tensor, self._call(aten.clone.default, mean), scale)
        edge = self._call(aten.sub.Tensor, beta, lowered)
        # Under autocast the output is of a shorter dtype than the norm's own numbers.
        edge = self._call(aten.type_as.default, edge, made)
        edge = self._call(aten.reshape.default, edge, [-1, *[1] * len(step.border)])
        pads = [size for size in reversed(step.border) for _side in range(2)]
        inner = self._call(aten.sub.Tensor, made, edge)
        padded = self._call(aten.pad.default, inner, pads)
        return self._call(aten.add.Tensor, padded, edge)

    def _tensor(self, step: str, name: str) -> Node:
        return self.graph.get_attr(f"{self.prefix}.{step}.{name}")

    def _call(self, op: Any, *args: Any) -> Node:
        return self.graph.call_function(op, args)
