"""The properties that every case has, each against an oracle of its own."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from bench.oracle import composed
from fuzz_cases import Case
from fuzz_oracles import (
    in_phase,
    layer_weights,
    outputs,
    products,
    same_bits,
    sensitivity,
    snapshot,
    tensors,
)
from fuzz_plans import make_plan
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.graph.rows import MatchReport
from opdf_compile.graph.tracing import Traced
from opdf_compile.training.inline.expanded import Expanded

# Invariant 1. Of a float64 weight: n <= 7 products of orthogonal factors, each rounded once.
LOSSLESS = {"float64": 1e-13}
STEP = 0.1


@dataclass
class Run:
    """A case with what the package made of it."""

    case: Case
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    traced: Traced
    report: MatchReport
    plan: opdf.Plan | None


def check(case: Case, folder: Path | None = None) -> Run:
    """All properties of one case.

    Args:
        case: The case.
        folder: Where files go; without it, none is written.
    """
    model = case.model()
    args, kwargs = case.inputs()
    before = snapshot(model)
    traced = opdf.trace(model, args, kwargs, dynamic=False if case.fixed else None)
    report = opdf.match(traced)
    run = Run(case, model, args, kwargs, traced, report, make_plan(traced, report, case.plan))
    check_no_silent_skip(run)
    if run.plan is not None:
        try:
            _check_plan(run, run.plan, folder)
        except Exception as error:
            error.add_note(f"{case}\n# with the plan\n{run.plan.dumps()}")
            raise
    check_unchanged(before, model)
    return run


def _check_plan(run: Run, plan: opdf.Plan, folder: Path | None) -> None:
    check_plan_round_trip(plan)
    expanded = opdf.expand(run.traced, plan)
    check_lossless(run, expanded)
    check_fold(run, expanded)
    if folder is not None:
        check_file(run, expanded, folder)
    check_outputs(run, expanded)
    check_buffers(run, expanded)
    expanded.double()
    check_gradients(run, expanded)
    check_hoisted_step(run, expanded)


def check_no_silent_skip(run: Run) -> None:
    """5: what is multiplied with an input, and what a layer holds, is a match or a refusal."""
    rows = [*(row.key for row in run.report.matches), *(row.key for row in run.report.refusals)]
    assert len(rows) == len(set(rows)), "a weight is reported twice"
    used = products(run.model, run.args, run.kwargs)
    silent = (used | layer_weights(run.model)) - set(rows)
    assert not silent, f"skipped in silence: {sorted(silent)}"
    phantoms = {match.key for match in run.report.matches} - used
    assert not phantoms, f"matched, but multiplied with no input: {sorted(phantoms)}"
    assert all(row.reason for row in run.report.refusals)


def check_unchanged(before: dict[str, Any], model: nn.Module) -> None:
    """6: the caller's model is as it was."""
    after = snapshot(model)
    for what in ("objects", "gradients", "flags", "attributes"):
        assert before[what] == after[what], f"{what} of the caller's model changed"
    for name, value in before["bits"].items():
        assert same_bits(value, after["bits"][name]), f"{name} of the caller's model changed"
    assert all(p.grad is None for p in model.parameters())


def check_plan_round_trip(plan: opdf.Plan) -> None:
    """7: a plan is its JSON."""
    again = opdf.Plan.from_json(json.loads(plan.dumps()))
    assert again.entries == plan.entries
    assert again.to_json() == plan.to_json()


def check_lossless(run: Run, expanded: Expanded) -> None:
    """1: the cores of each weight make it again."""
    weights = dict(run.model.named_parameters(remove_duplicate=False))
    for entry in expanded.plan.entries:
        weight = weights[entry.key].detach().double()
        made = composed([c.detach().double() for c in expanded.cores(entry.key)], entry)
        error = (made - weight).norm()
        bound = LOSSLESS.get(entry.spec.dtype, 1e-6) * weight.norm()
        assert error <= bound, f"{entry.key}: off by {error:.2e}, at most {bound:.2e}"


def check_fold(run: Run, expanded: Expanded) -> None:
    """2: the student comes back whole; a folded weight is the cores' product, rounded once."""
    folded = opdf.fold(expanded)
    assert isinstance(folded, nn.Module)
    planned = {name: e for e in expanded.plan.entries for name in (e.key, *e.aliases)}
    student, own = dict(tensors(run.model)), dict(tensors(folded))
    assert type(folded) is type(run.model)
    assert list(folded.state_dict()) == list(run.model.state_dict())
    assert list(own) == list(student)
    assert _flags(folded) == _flags(run.model)
    assert _ties(own) == _ties(student)
    for name, value in own.items():
        assert value.dtype == student[name].dtype and value.shape == student[name].shape, name
        assert value.requires_grad == student[name].requires_grad, name
        assert value.data_ptr() != student[name].data_ptr() or value.numel() == 0, name
        if name not in planned:
            assert same_bits(value, student[name]), f"{name} was not planned, and changed"
            continue
        entry = planned[name]
        exact = composed([c.detach().double() for c in expanded.cores(entry.key)], entry)
        half_ulp = torch.finfo(value.dtype).eps / 2 * exact.abs()
        # A subnormal of the dtype has an absolute spacing; the two orders of summing differ too.
        slack = torch.finfo(value.dtype).smallest_normal + 1e-14 * exact.abs().max()
        off = (value.detach().double() - exact).abs() > half_ulp + slack
        assert not off.any(), f"{name}: {int(off.sum())} entries are no rounding of the product"


def check_outputs(run: Run, expanded: Expanded) -> None:
    """1: both phases compute what the student computes."""
    eps = torch.finfo(getattr(torch, run.case.dtype)).eps
    delta = eps * (2 if eps > 1e-4 else 8)
    for phase in ("eval", "train"):  # A train run moves the statistics that eval reads.
        wanted = outputs(in_phase(run.model, phase), run.args, run.kwargs)
        allowed = sensitivity(run.model, phase, run.args, run.kwargs, delta)
        expanded.train(phase == "train")
        found = outputs(expanded, run.args, run.kwargs)
        if phase == "eval":
            student = in_phase(run.model, phase)
            trees = [pytree.tree_structure(m(*run.args, **run.kwargs)) for m in (student, expanded)]
            assert trees[0] == trees[1]
        assert len(found) == len(wanted)
        for value, truth, moved in zip(found, wanted, allowed, strict=True):
            assert value.shape == truth.shape
            if not value.numel():
                continue
            bound = 10 * moved + 8 * eps * truth.abs().max()
            error = (value - truth).abs().max()
            assert error <= bound, f"{phase}: an output is off by {error:.2e}, bound {bound:.2e}"


def check_buffers(run: Run, expanded: Expanded) -> None:
    """2: statistics that a train run moved come back with the fold."""
    student = in_phase(run.model, "train")
    outputs(student, run.args, run.kwargs)
    folded = opdf.fold(expanded)
    assert isinstance(folded, nn.Module)
    eps = torch.finfo(getattr(torch, run.case.dtype)).eps
    for name, value in student.named_buffers():
        own = folded.get_buffer(name)
        assert own.dtype == value.dtype
        if value.is_floating_point():
            error = (own - value).double().abs().max()
            assert error <= 1e3 * eps * (1 + value.double().abs().max()), name
        else:
            assert torch.equal(own, value), name


def check_gradients(run: Run, expanded: Expanded) -> None:
    """3: gradients of the inline form are autograd's through the einsum; all in float64."""
    student = in_phase(run.model, "train").double()
    args, kwargs = doubled((run.args, run.kwargs))
    entries = expanded.plan.entries
    cores = {
        e.key: [c.detach().clone().requires_grad_() for c in expanded.cores(e.key)] for e in entries
    }
    weights = {n: composed(cores[e.key], e) for e in entries for n in (e.key, *e.aliases)}
    others = {n: p for n, p in student.named_parameters() if n not in weights and p.requires_grad}
    torch.manual_seed(3)
    wanted = loss(torch.func.functional_call(student, weights, args, kwargs, tie_weights=False))
    expanded.train().zero_grad(set_to_none=True)
    torch.manual_seed(3)
    found = loss(expanded(*args, **kwargs))
    assert found.requires_grad == wanted.requires_grad
    if not wanted.requires_grad:
        return
    found.backward()
    named = dict(expanded.named_parameters(remove_duplicate=False))
    pairs = [
        (f"{k}[{i}]", c, own)
        for k, found_cores in cores.items()
        for i, (c, own) in enumerate(zip(found_cores, expanded.cores(k), strict=True))
    ]
    pairs += [(n, p, named[n]) for n, p in others.items() if n in named]
    truth = torch.autograd.grad(wanted, [p for _n, p, _own in pairs], allow_unused=True)
    largest = max((float(g.abs().max()) for g in truth if g is not None and g.numel()), default=0.0)
    for (name, parameter, own), gradient in zip(pairs, truth, strict=True):
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        mine = torch.zeros_like(parameter) if own.grad is None else own.grad
        error = float((mine - gradient).norm())
        # Two orders of the same float64 sums; batch norm may amplify their rounding.
        assert error <= 1e-9 * float(gradient.norm()) + 1e-11 * largest + 1e-300, (
            f"the gradient of {name} is off by {error:.2e} of {float(gradient.norm()):.2e}"
        )


def check_hoisted_step(run: Run, expanded: Expanded) -> None:
    """4: a step of the hoisted form is a step of the inline form."""
    student = in_phase(run.model, "train").double()
    args, kwargs = doubled((run.args, run.kwargs))
    program = opdf.hoist(student, in_float64(expanded.plan))
    with torch.no_grad():
        for entry in expanded.plan.entries:
            for own, theirs in zip(
                program.cores(entry.key), expanded.cores(entry.key), strict=True
            ):
                own.copy_(theirs)
    program.refresh()
    torch.manual_seed(3)
    value = loss(student(*args, **kwargs))
    if not value.requires_grad:
        return
    value.backward()
    program.backward()
    torch.optim.SGD(program.parameters(), lr=STEP).step()
    program.refresh()
    # The gradients of the inline form are still those of check_gradients, at the same point.
    torch.optim.SGD(expanded.parameters(), lr=STEP).step()
    truth = {
        name: composed([c.detach() for c in expanded.cores(e.key)], e)
        for e in expanded.plan.entries
        for name in (e.key, *e.aliases)
    }
    named = dict(expanded.named_parameters(remove_duplicate=False))
    for name, parameter in student.named_parameters(remove_duplicate=False):
        wanted = truth.get(name, named.get(name))
        if wanted is None:
            continue  # No graph reads it.
        error, size = float((parameter - wanted).detach().norm()), float(wanted.detach().norm())
        assert error <= 1e-9 * (size + 1e-6), (
            f"{name}: after a step off by {error:.2e} of {size:.2e}"
        )


def check_file(run: Run, expanded: Expanded, folder: Path) -> None:
    """7: out to .pt2 and folded from there, the weights are the same bits."""
    from opdf_compile.io.saved.expanded_file import fold_file, save_expanded

    path = folder / "expanded.pt2"
    save_expanded(expanded, path)
    state = fold_file(path).state
    folded = opdf.fold(expanded)
    assert isinstance(folded, nn.Module)
    own = dict(tensors(folded))
    assert set(state) <= set(own)
    for name, value in state.items():
        assert same_bits(value.cpu(), own[name].detach()), name


def loss(output: Any) -> Tensor:
    """A fixed linear function of all outputs."""
    generator = torch.Generator().manual_seed(4)
    total = torch.zeros((), dtype=torch.float64)
    for value in pytree.tree_leaves(output):
        weights = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        total = total + (value * weights).sum()
    return total


def doubled(inputs: Any) -> Any:
    """Inputs in float64."""
    return pytree.tree_map(
        lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, inputs
    )


def in_float64(plan: opdf.Plan) -> opdf.Plan:
    """The plan for the same model in float64."""
    value = copy.deepcopy(plan.to_json())
    for entry in value["entries"]:
        entry["spec"]["dtype"] = "float64"
    return opdf.Plan.from_json(value)


def _flags(model: nn.Module) -> list[tuple[str, bool]]:
    return [(name, module.training) for name, module in model.named_modules()]


def _ties(named: dict[str, Tensor]) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, value in named.items():
        groups.setdefault(id(value), []).append(name)
    return list(groups.values())
