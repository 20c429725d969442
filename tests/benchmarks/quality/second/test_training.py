"""A run is what a user's own loop with the package does, written out here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quality.second.cost import measured
from quality.second.methods import BY_NAME, METHODS
from quality.second.problem import Part, Problem
from quality.second.search import Trial
from quality.second.students import maker
from quality.second.training import Run, train
from quick import quick
from torch import Tensor, nn

import opdf_compile as opdf

STEPS = 7


@pytest.fixture(scope="module", name="problem")
def made() -> Problem:
    """Series of three classes, which a shallow student can tell apart."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        labels = torch.arange(count) % 3
        inputs = torch.randn(count, 2, 12, generator=generator) + labels.view(-1, 1, 1) - 1
        return Part(inputs, labels, 4.0 * F.one_hot(labels, 3) + 0.1 * inputs.mean((1, 2), True)[0])

    parts = {"train": part(70), "validation": part(30), "test": part(60)}
    return Problem("t", "shallow", STEPS, parts, maker("shallow", 1, 2, 3, 4))


def by_hand(
    problem: Problem, model: nn.Module, optimizer: torch.optim.Optimizer, peak: float, seed: int
) -> None:
    """Seven steps: one of warm-up, then a cosine; two batches of 32 to a pass, six rows left out.

    With the loss of distillation written out.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(70, generator=generator) for _pass in range(4)]
    rows = [order[k : k + 32] for order in orders for k in (0, 32)]
    part = problem.parts["train"]
    model.train()
    for step in range(STEPS):
        rate = peak if step == 0 else peak * (1 + math.cos(math.pi * (step - 1) / 6)) / 2
        optimizer.param_groups[0]["lr"] = rate
        logits = model(part.inputs[rows[step]])
        right = logits.log_softmax(1).gather(1, part.labels[rows[step]][:, None])
        p, q = (part.teacher[rows[step]] / 4).softmax(1), (logits / 4).softmax(1)
        apart = (p * (p.log() - q.log())).sum(1).mean()
        loss = -0.1 * right.mean() + 0.9 * 16 * apart
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def scored(problem: Problem, model: nn.Module, part: str) -> tuple[float, float]:
    found = problem.parts[part]
    logits: Tensor = model.eval()(found.inputs).detach()
    right = int((logits.argmax(1) == found.labels).sum()) / len(found.labels)
    return right, float(F.cross_entropy(logits, found.labels))


def student(problem: Problem, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return problem.make()


def run(method: str, trial: Trial, seed: int = 1003) -> Run:
    return Run("t", "shallow", "distil", method, STEPS, trial, seed)


def test_a_plain_run_is_a_loop_with_torch(problem: Problem) -> None:
    found = train(problem, run("plain", Trial("sgd", 2, 1)))
    model, peak = student(problem, 1003), 1.0
    decay = 0.1 / (peak * STEPS)
    optimizer = torch.optim.SGD(model.parameters(), peak, momentum=0.9, weight_decay=decay)
    by_hand(problem, model, optimizer, peak, 1003)
    for part in ("validation", "test"):
        assert found[part] == pytest.approx(scored(problem, model, part), rel=1e-4)


def test_a_run_with_branches_is_a_loop_with_branch_and_fold(problem: Problem) -> None:
    found = train(problem, run("repvgg", Trial("adamw", -2)))
    own = student(problem, 1003)
    traced = opdf.trace(own, (problem.parts["train"].inputs[:2],))
    plan = opdf.plan(traced, parametrization="repvgg(start=published, seed=1003)")
    model = opdf.branch(own, plan)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    by_hand(problem, model, optimizer, 1e-2, 1003)
    assert found["test"] == pytest.approx(scored(problem, opdf.fold(model), "test"), rel=1e-4)
    assert found["test"] != train(problem, run("plain", Trial("adamw")))["test"]


def test_a_weight_only_run_is_a_loop_with_overparam(problem: Problem) -> None:
    found = train(problem, run("gains", Trial("adamw", -2, 1)))
    own = student(problem, 1003)
    plan = opdf.plan(problem.traced, parametrization="gains")
    optimizer = opdf.Overparam(
        own, torch.optim.AdamW, plan=plan, lr=1e-2, weight_decay=0.1 / (1e-2 * STEPS)
    )
    by_hand(problem, own, optimizer, 1e-2, 1003)
    assert found["test"] == pytest.approx(scored(problem, own, "test"), rel=1e-4)


@pytest.mark.parametrize(
    "name",
    quick(
        (m.name for m in METHODS if 1 in m.axes),
        {"plain", "mobileone", "hyperball", "repopt", "mpo"},
    ),
)
def test_every_method_trains_with_each_of_its_optimizers(problem: Problem, name: str) -> None:
    for optimizer in BY_NAME[name].centres:
        found = train(problem, run(name, Trial(optimizer, -1, 1), seed=200))
        assert set(found) == {"validation", "seconds"}  # The test part is not for tuning.
        assert 0 < found["validation"][1] < 10


def test_a_seed_decides_a_run_and_another_gives_another(problem: Problem) -> None:
    one, again, other = (
        train(problem, run("repvgg", Trial("adamw"), seed))["validation"] for seed in (1, 1, 2)
    )
    assert one == again != other


def test_a_run_that_diverges_has_accuracy_zero(problem: Problem) -> None:
    for name in ("plain", "repvgg"):
        found = train(problem, run(name, Trial("sgd", 60)))
        assert found["validation"] == found["test"] == (0.0, 10.0)


def test_a_step_of_plain_costs_what_a_step_of_plain_costs(problem: Problem) -> None:
    """Times are not asserted, but that both sides are measured alike."""
    clock = iter(range(1000))

    def ticks() -> float:
        return float(next(clock))

    patched: Any = pytest.MonkeyPatch()
    with patched.context() as patch:
        patch.setattr("time.process_time", ticks)
        assert measured(problem, "gains", "adamw", laps=4) == {"ratio": 1.0, "spread": 0.0}
