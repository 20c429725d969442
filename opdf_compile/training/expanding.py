"""expand: Traced + Plan -> Expanded."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from opdf_compile.errors import InputError, PlanError
from opdf_compile.graph.edit import attribute, get_attrs, is_persistent, register
from opdf_compile.graph.match import match
from opdf_compile.graph.trace import PHASES, Traced, out_spec
from opdf_compile.parametrizations.registry import get
from opdf_compile.passes.base import Pipeline
from opdf_compile.passes.check import CheckShapes
from opdf_compile.passes.expand import Expand
from opdf_compile.plan.value import Plan, PlanEntry
from opdf_compile.training.calling import convention
from opdf_compile.training.cores import Cores
from opdf_compile.training.expanded import Expanded
from opdf_compile.training.phase import PhaseGraph, copy_flat

Progress = Callable[[str, int, int], None]
logger = logging.getLogger("opdf_compile")


def expand(
    traced: Traced,
    plan: Plan,
    *,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Expanded:
    """Rewrite every planned weight into its over-parameterised form; nothing is lost.

    Args:
        traced: The student's graphs; neither they nor the student are changed.
        plan: What becomes of each weight.
        device: Where to factorise; the weight's own device if None.
        progress: Called with (weight, number done, number of weights) before each decomposition.

    Returns:
        A module to train. Its outputs equal the student's within rounding.

    Raises:
        PlanError: The plan is for another model.
        InputError: A weight holds NaN or infinity.

    Example:
        >>> import torch, opdf_compile as opdf
        >>> traced = opdf.trace(torch.nn.Linear(16, 16), (torch.randn(2, 16),))
        >>> sorted(opdf.expand(traced, opdf.plan(traced)).state_dict())
        ['bias', 'weight_cores.0', 'weight_cores.1', 'weight_cores.2']
    """
    plan.validate(match(traced))
    tensors = _Tensors(traced, plan)
    cores: dict[str, nn.ParameterList] = {}
    for index, entry in enumerate(plan.entries):
        if progress is not None:
            progress(entry.key, index, len(plan.entries))
        cores[entry.key] = _decompose(entry, tensors.weight(entry), device)
    passes = Pipeline([Expand(plan, cores), CheckShapes(plan)])
    graphs = {phase: passes(traced.graphs[phase]).module for phase in PHASES}
    forward = traced.source.forward if isinstance(traced.source, nn.Module) else None
    expanded = Expanded(
        plan,
        {
            phase: PhaseGraph(_flat(graphs[phase], phase), out_spec(traced.programs[phase]))
            for phase in PHASES
        },
        convention(traced.programs["train"], forward, traced.input_names),
        copy.deepcopy(traced.source),
        traced.example(),
        traced.axis_names,
    )
    tensors.register_all(expanded, [traced.graphs[phase] for phase in PHASES])
    for key, entry_cores in cores.items():
        register(expanded, f"{key}_cores", entry_cores)
    if isinstance(traced.source, nn.Module):
        expanded.train(traced.source.training)
    return expanded


def _decompose(entry: PlanEntry, weight: Tensor, device: torch.device | str | None) -> Cores:
    parametrization = get(entry.parametrization)
    try:
        cores = parametrization.decompose(weight.detach(), entry.spec, device=device)
    except InputError as error:
        raise InputError(
            f"the weight {entry.key!r} cannot be factorised: {error}; repair the weight, or "
            f"exclude it (exclude=[{entry.key!r}])"
        ) from error
    return Cores(cores, requires_grad=weight.requires_grad)


class _Tensors:
    """Copies of everything the graphs read that is not planned; one copy for one object."""

    def __init__(self, traced: Traced, plan: Plan) -> None:
        self._planned = {name for e in plan.entries for name in (e.key, *e.aliases)}
        self._graphs = [traced.graphs[phase] for phase in PHASES]
        self._copies: dict[int, Any] = {}

    def weight(self, entry: PlanEntry) -> Tensor:
        for graph in self._graphs:
            for name in (entry.key, *entry.aliases):
                found = attribute(graph, name)
                if isinstance(found, nn.Parameter):
                    return found
        raise PlanError(
            f"the plan names {entry.key!r}, which no graph holds; make a plan for this model"
        )

    def register_all(self, root: nn.Module, graphs: list[GraphModule]) -> None:
        for graph in graphs:
            for name, parameter in graph.named_parameters(remove_duplicate=False):
                if name not in self._planned and attribute(root, name) is None:
                    register(root, name, self._copy(parameter))
            for name, buffer in graph.named_buffers(remove_duplicate=False):
                if attribute(root, name) is None:
                    register(root, name, self._copy(buffer), persistent=is_persistent(graph, name))
        for phase, graph in zip(PHASES, graphs, strict=True):
            for node, value in get_attrs(graph):
                self._register_rest(root, phase, str(node.target), value)

    def _register_rest(self, root: nn.Module, phase: str, name: str, value: object) -> None:
        """Nested graphs get a name per phase; constants are buffers outside the state dict."""
        if isinstance(value, GraphModule):
            register(root, f"_{phase}_{name.replace('.', '_')}", copy.deepcopy(value))
        elif isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            if attribute(root, name) is None:
                register(root, name, self._copy(value), persistent=False)
        elif not isinstance(value, Tensor) and attribute(root, name) is None:
            register(root, name, value)

    def _copy(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._copies:
            fresh = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                fresh = nn.Parameter(fresh, requires_grad=tensor.requires_grad)
            self._copies[id(tensor)] = fresh
        copied: Tensor = self._copies[id(tensor)]
        return copied


def _flat(module: GraphModule, phase: str) -> torch.fx.Graph:
    graph = copy_flat(module.graph)
    for node in graph.nodes:
        if node.op == "get_attr" and isinstance(attribute(module, str(node.target)), GraphModule):
            node.target = f"_{phase}_{str(node.target).replace('.', '_')}"
    return graph
