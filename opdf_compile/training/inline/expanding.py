"""expand: Traced + Plan -> Expanded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx.graph import CodeGen

from opdf_compile.errors import PlanError, TraceError, require_type
from opdf_compile.graph import (
    PHASES,
    Phase,
    Traced,
    all_graphs,
    attribute,
    deep_copy,
    drop_dtype_checks,
    find_sites,
    get_attrs,
    is_persistent,
    match,
    out_spec,
    set_attribute,
)
from opdf_compile.passes import AddBranches, CheckShapes, Expand, Pipeline
from opdf_compile.planning import Plan, PlanEntry, require_plan
from opdf_compile.training.announcing import WeightProgress, announced
from opdf_compile.training.branched.layers import branch_layers
from opdf_compile.training.inline.calling import convention
from opdf_compile.training.inline.expanded import CoreList, Expanded
from opdf_compile.training.inline.phase import PhaseGraph


def expand(
    traced: Traced,
    plan: Plan,
    *,
    device: torch.device | str | None = None,
    progress: WeightProgress | None = None,
) -> Expanded:
    """Rewrite every planned weight into its over-parameterised form; nothing is lost.

    Args:
        traced: The student's graphs; neither they nor the student are changed.
        plan: What becomes of each weight.
        device: Where to factorise; the weight's own device if None.
        progress: Called with (weight, number done, number of weights) before each decomposition;
            the log ``opdf_compile`` has the same at INFO, and a warning of a weight that is dear.

    Returns:
        A module to train. Its outputs equal the student's within rounding.

    Raises:
        TraceError: A phase has no graph: it stands on the rung "module", or was not traced.
        PlanError: The plan is for another model, or a planned weight has a hook on its gradient.
        InputError: A weight holds NaN or infinity, or an argument is of another type.

    Example:
        >>> import torch, opdf_compile as opdf
        >>> traced = opdf.trace(torch.nn.Linear(16, 16), (torch.randn(2, 16),))
        >>> sorted(opdf.expand(traced, opdf.plan(traced, cores=3)).state_dict())
        ['bias', 'weight_cores.0', 'weight_cores.1', 'weight_cores.2']
    """
    require_type(traced, Traced, "the model", "a Traced; opdf.trace(model, args) makes one")
    require_plan(plan)
    _require_graphs(traced)
    plan.validate(match(traced))
    _refuse_metric(plan)
    if plan.sites:
        plan.validate_sites(find_sites(traced))
    tensors = _Tensors(traced, plan)
    _refuse_hooks(plan, tensors)
    tell = announced(plan, progress)
    cores: dict[str, nn.ParameterList] = {}
    for index, entry in enumerate(plan.entries):
        tell(entry.key, index, len(plan.entries))
        weight = tensors.weight(entry)
        made = entry.decompose(weight, device=device)
        still = entry.by.untrained(entry.spec)
        cores[entry.key] = CoreList(made, requires_grad=weight.requires_grad, untrained=still)
    layers = _branches(plan, tensors)
    graphs = {}
    for phase in PHASES:
        steps = (AddBranches(plan, phase, layers), Expand(plan, cores), CheckShapes(plan))
        graphs[phase] = Pipeline(steps).rewrite(traced.graphs[phase]).module
    names = {phase: _own_names(traced, phase) for phase in PHASES}
    forward = traced.source.forward if isinstance(traced.source, nn.Module) else None
    expanded = Expanded(
        plan,
        {
            phase: PhaseGraph(_taken(graphs[phase], names[phase]), out_spec(traced.programs[phase]))
            for phase in PHASES
        },
        convention(traced.programs, forward, traced.input_names),
        _skeleton(traced.source, plan),
        traced.example(),
        traced.axis_names,
    )
    for phase in PHASES:
        tensors.register_all(expanded.tree, traced.graphs[phase], names[phase])
    for key, entry_cores in cores.items():
        set_attribute(expanded.tree, f"{key}_cores", entry_cores)
    for site in plan.sites:
        set_attribute(expanded.tree, site.branches_name, layers[site.key])
    if isinstance(traced.source, nn.Module):
        expanded.train(traced.source.training)
    return expanded


def _require_graphs(traced: Traced) -> None:
    missing = [phase for phase in PHASES if phase not in traced.graphs]
    if not missing:
        return
    name = type(traced.source).__name__
    if missing[0] not in traced.reasons:
        raise TraceError(
            f"{name} was traced without its {missing[0]} phase, wanted both; trace it again and "
            "leave phases out"
        )
    which = "graph" if len(missing) == len(PHASES) else f"{missing[0]} graph"
    raise TraceError(
        f"{name} has no {which} to expand ({traced.reasons[missing[0]]}), wanted one that "
        "torch.export can hold; train the module itself in the hoisted form: "
        "opdf.Overparam(model, torch.optim.AdamW, plan=plan), or opdf.hoist(model, plan)"
    )


def _refuse_metric(plan: Plan) -> None:
    """A method that acts around an optimizer's step has nothing in a graph."""
    entry = next((entry for entry in plan.entries if entry.metric), None)
    if entry is not None:
        raise PlanError(
            f"{entry.parametrization}, planned for {entry.key!r}, acts around the step of an "
            "optimizer, which no graph holds, wanted a parametrization with cores; train it in the "
            "hoisted form (opdf.Overparam), or plan the weight otherwise"
        )


def _refuse_hooks(plan: Plan, tensors: _Tensors) -> None:
    """A hook on a weight's gradient has no gradient to see once cores stand in its place."""
    for entry in plan.entries:
        weight = tensors.weight(entry)
        if weight._backward_hooks or weight._post_accumulate_grad_hooks:
            raise PlanError(
                f"{entry.key!r} has a hook on its gradient, which its cores would never call, "
                "wanted a weight without one; remove the hook, exclude the weight, or train in "
                "the hoisted form (opdf.Overparam), where the weight keeps its gradient"
            )


def _branches(plan: Plan, tensors: _Tensors) -> dict[str, nn.ModuleDict]:
    """The branches of every site, one set for both phases."""
    return {
        site.key: branch_layers(site.key, site.spec, tensors.parameter(site.norm["weight"]))
        for site in plan.sites
    }


def _skeleton(source: nn.Module | ExportedProgram, plan: Plan) -> nn.Module | ExportedProgram:
    """A copy of what was traced, for `fold` to fill.

    Planned weights come out as memory that nobody has written: their numbers are in the cores.
    """
    if not isinstance(source, nn.Module):
        return deep_copy(source)
    planned = {name for e in plan.entries for name in (e.key, *e.aliases)}
    unwritten: dict[int, object] = {}
    for name, weight in source.named_parameters(remove_duplicate=False):
        if name in planned and id(weight) not in unwritten:
            room = torch.empty_like(weight.data)
            unwritten[id(weight)] = nn.Parameter(room, requires_grad=weight.requires_grad)
    return deep_copy(source, unwritten)


class _Tensors:
    """Copies of everything the graphs read that is not planned; one copy for one object."""

    def __init__(self, traced: Traced, plan: Plan) -> None:
        self._planned = {name for e in plan.entries for name in (e.key, *e.aliases)}
        self._graphs = [traced.graphs[phase] for phase in PHASES]
        self._copies: dict[int, Any] = {}

    def weight(self, entry: PlanEntry) -> Tensor:
        return self.parameter(entry.key, *entry.aliases)

    def parameter(self, *names: str) -> Tensor:
        for graph in self._graphs:
            for name in names:
                found = attribute(graph, name)
                if isinstance(found, nn.Parameter):
                    return found
        raise PlanError(
            f"the plan names {names[0]!r}, which no graph holds; make a plan for this model"
        )

    def register_all(self, root: nn.Module, graph: GraphModule, names: Mapping[str, str]) -> None:
        """Put what a graph reads under its own name, or the one that `names` gives it."""
        for name, parameter in graph.named_parameters(remove_duplicate=False):
            if name not in self._planned and attribute(root, name) is None:
                set_attribute(root, name, self._copy(parameter))
        for name, buffer in graph.named_buffers(remove_duplicate=False):
            own = names.get(name, name)
            if attribute(root, own) is None:
                set_attribute(root, own, self._copy(buffer), persistent=is_persistent(graph, name))
        for node, value in get_attrs(graph):
            self._register_rest(root, names.get(str(node.target), str(node.target)), value)

    def _register_rest(self, root: nn.Module, name: str, value: object) -> None:
        """Nested graphs, and constants as buffers outside the state dict."""
        if isinstance(value, nn.Parameter) or attribute(root, name) is not None:
            return
        if isinstance(value, GraphModule):
            nested = deep_copy(value)
            for inner in all_graphs(nested):
                drop_dtype_checks(inner.graph)
                inner.recompile()
            set_attribute(root, name, nested)
        elif isinstance(value, Tensor):
            set_attribute(root, name, self._copy(value), persistent=False)
        else:
            set_attribute(root, name, value)

    def _copy(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._copies:
            fresh = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                fresh = nn.Parameter(fresh, requires_grad=tensor.requires_grad)
            self._copies[id(tensor)] = fresh
        copied: Tensor = self._copies[id(tensor)]
        return copied


def _own_names(traced: Traced, phase: Phase) -> dict[str, str]:
    """Names of one phase only: nested graphs, and constants that the other phase has otherwise.

    torch.export numbers both (``submod_0``, ``lifted_tensor_0``), so one name may stand for two
    things.
    """
    names = {}
    for node, value in get_attrs(traced.graphs[phase]):
        name = str(node.target)
        other = attribute(traced.graphs["train"], name)
        if isinstance(value, GraphModule) or _differs(value, other):
            names[name] = f"_{phase}_{name.replace('.', '_')}"
    return names


def _differs(value: object, other: object) -> bool:
    if other is None or other is value or isinstance(value, nn.Parameter):
        return False
    if isinstance(value, Tensor) and isinstance(other, Tensor) and value.shape == other.shape:
        return value.is_meta or not torch.equal(value, other)
    return True


def _taken(module: GraphModule, names: Mapping[str, str]) -> torch.fx.Graph:
    """The graph of a module that is not needed any more, taking leaves and returning leaves.

    It leaves its module behind, which holds the student's own tensors.
    """
    graph = module.graph
    graph.owning_module = None
    graph.set_codegen(CodeGen())
    drop_dtype_checks(graph)
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = names.get(str(node.target), node.target)
    return graph
