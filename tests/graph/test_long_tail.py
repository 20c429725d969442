"""Each way to hold or read a weight: the report, a lossless expand, one step, an exact fold."""

from __future__ import annotations

import copy

import pytest
import torch
from long_tail import CASES, NESTED, QUICK, Case
from torch import Tensor, nn

import opdf_compile as opdf

# A loop cannot be trained: torch has no derivative of while_loop with a free number of steps.
UNTRAINED = {"while_loop"}
# float64: compose and the factorisation each cost a few units of 2^-52 times the weight's norm.
TOLERANCE = 1e-11


def test_names_of_quick_cases_are_in_the_table() -> None:
    assert {case.name for case in CASES} >= QUICK


def cases(given: list[Case]) -> list[object]:
    """The table as parameters; what `make test` leaves out is marked slow."""
    slow = pytest.mark.slow
    return [pytest.param(c, id=c.name, marks=() if c.name in QUICK else slow) for c in given]


@pytest.mark.parametrize("case", cases(CASES))
@pytest.mark.filterwarnings("ignore")
def test_case(case: Case) -> None:
    student, inputs = case.model(), case.inputs()
    traced = opdf.trace(student, inputs)
    report = opdf.match(traced)
    assert {m.key: (m.row_axes, m.kernel, m.through) for m in report.matches} == case.matches
    reasons = {r.key: r.reason for r in report.refusals}
    assert set(reasons) == set(case.refusals), str(report)
    for key, piece in case.refusals.items():
        assert piece in reasons[key]
    include = [*case.matches, *(case.refusals if case.included else ())]
    plan = opdf.plan(traced, min_size=1, include=include)
    expanded = opdf.expand(traced, plan)
    untouched = copy.deepcopy(student.state_dict())
    for phase in (True, False):
        plain = run(student.train(phase), inputs)
        assert_close(run(expanded.train(phase), inputs), plain)
    planned = {entry.key for entry in plan.entries}
    same(opdf.fold(expanded), student, planned)
    if case.name not in UNTRAINED:
        step(expanded, inputs)
    # What was traced is the caller's: only its own calls above moved its buffers.
    assert_close(
        dict(student.named_parameters()), {k: untouched[k] for k, _p in student.named_parameters()}
    )


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    torch.manual_seed(0)
    return model(*inputs)


def assert_close(found: object, wanted: object) -> None:
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)


def same(folded: nn.Module, student: nn.Module, planned: set[str]) -> None:
    """Planned weights differ by rounding only, everything else by nothing."""
    assert type(folded) is type(student)
    left, right = folded.state_dict(), student.state_dict()
    assert list(left) == list(right)
    for key, value in right.items():
        moved = key in planned or key not in dict(student.named_parameters())
        torch.testing.assert_close(
            left[key], value, rtol=TOLERANCE if moved else 0, atol=TOLERANCE if moved else 0
        )


def step(expanded: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """One step of training moves every core that has a gradient, and nothing is NaN."""
    expanded.train()
    optimizer = torch.optim.SGD(expanded.parameters(), lr=1e-3)
    loss = run(expanded, inputs)
    if not loss.requires_grad:
        return  # The student runs without gradients, and so does its training graph.
    loss.square().mean().backward()
    cores = {n: p for n, p in expanded.named_parameters() if "_cores." in n}
    assert cores
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in cores.values())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in cores.values())
    optimizer.step()
    assert torch.isfinite(run(expanded, inputs)).all()


@pytest.mark.slow
def test_nested_weights_are_composed_outside() -> None:
    """A weight that one branch reads is composed in front of the branch, once."""
    case = NESTED[0]
    traced = opdf.trace(case.model(), case.inputs())
    report = opdf.match(traced)
    uses = {m.key: len([u for u in m.uses if u.phase == "train"]) for m in report.matches}
    assert uses == {"a.weight": 1, "b.weight": 1, "c.weight": 2}
