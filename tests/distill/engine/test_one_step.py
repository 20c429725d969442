"""`distill` and `advise` take the same steps: the same recipe and seed give the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opdf_compile.distill.advise import trainer
from opdf_compile.distill.advise.entrants import PLAIN, entrants
from opdf_compile.distill.advise.holdouts import Holdouts
from opdf_compile.distill.engine import Machine, Setup, Teaching, TrainingStep, set_up
from opdf_compile.distill.recipe import Job
from opdf_compile.distill.run import run, running

Make = Callable[..., Job]
HIDDEN = """
[[loss]]
kind = "hidden"
mask = "mask"
projection = "learned"
[schedule]
warmup = 2
"""
# Masks leave 13 of 16 rows of a step, unequal in its batches; the norm of the gradient is above 0.2
# and that of the projections' is a part of it; dropout and batch statistics take part.
TRAINING = (
    "steps = 5\\nevaluate_every = 5\\naccumulation = 2\\nclip = 0.2\\nema = 0.8\\n"
    'device = "{}"\\nprecision = "{}"'
)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Setup]:
    """What runs are built of, in their order."""
    setups: list[Setup] = []

    def kept(*args: Any, **options: Any) -> Setup:
        setups.append(set_up(*args, **options))
        return setups[-1]

    monkeypatch.setattr(trainer, "set_up", kept)
    monkeypatch.setattr(running, "set_up", kept)
    return setups


def bits(setup: Setup) -> dict[str, Tensor]:
    """All that a training moves."""
    assert setup.average is not None and setup.side is not None
    modules = {"student": setup.student, "losses": setup.losses, "average": setup.average}
    found = {f"{of}/{n}": t for of, m in modules.items() for n, t in m.state_dict().items()}
    for place, optimizer in enumerate(setup.optimizers):
        held = tensors(optimizer.state_dict()["state"])
        found |= {f"optimizer {place}/{number}": t for number, t in enumerate(held)}
    return found


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value.values() for t in tensors(part)] if isinstance(value, dict) else []


def raced(job: Job, seed: int = 0, lr: float = 0.02) -> trainer.Trained:
    """A run of `advise` as the recipe asks for it."""
    name, holdouts = "the recipe's plan" if job.recipe.plan.enabled else PLAIN, Holdouts(job)
    (method,) = (method for method in entrants(job) if method.name == name)
    racing = trainer.Trainer(job, holdouts, time.perf_counter, math.inf)
    return racing.run(method, lr, 0.1, holdout=holdouts.tuning(), seed=seed, steps=5)


PLANS = ("enabled = false", "cores = 2")
# Each precision, the cache and each plan once in every run.
QUICK = {
    ("cores = 2", "fp32", "true"),
    ("cores = 2", "bf16", "false"),
    ("enabled = false", "fp64", "false"),
}
ON_CPU = [("fp32", "false"), ("fp32", "true"), ("bf16", "false"), ("fp64", "false")]


@pytest.mark.parametrize(
    ("plan", "device", "precision", "cache"),
    [
        *(
            pytest.param(
                *(plan, "cpu", *row), marks=() if (plan, *row) in QUICK else pytest.mark.slow
            )
            for plan in PLANS
            for row in ON_CPU
        ),
        *(
            pytest.param(plan, "cuda", precision, "true", marks=pytest.mark.gpu)
            for plan in PLANS
            for precision in ("fp32", "bf16", "fp16")
        ),
    ],
)
def test_one_recipe_and_seed_give_the_same_bits(
    plan: str,
    device: str,
    precision: str,
    cache: str,
    make: Make,
    built: list[Setup],
    tmp_path: Path,
) -> None:
    given = {"plan": plan, "cache": cache, "training": TRAINING.format(device, precision) + HIDDEN}
    value = run(make(**given), tmp_path / "run").metrics
    score = raced(make(**given))
    ours, theirs = (bits(setup) for setup in built)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert value and math.isfinite(score.score.value)


def test_another_rate_or_seed_gives_others(make: Make, built: list[Setup]) -> None:
    job = make(plan="cores = 2", training=TRAINING.format("cpu", "fp32") + HIDDEN)
    for given in ({}, {"seed": 1}, {"lr": 0.021}, {}):
        raced(job, **given)  # type: ignore[arg-type]
    first, *others, again = (bits(setup) for setup in built)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for other in others:
        assert not any(torch.equal(first[n], other[n]) for n in first if n.endswith("first.weight"))


def stepped(job: Job, *, clip: float | None) -> tuple[Setup, list[Tensor]]:
    """A setup after one SGD step, and how far each parameter went; projections last."""
    training = job.recipe.training.model_copy(update={"clip": clip})
    job = replace(job, recipe=job.recipe.model_copy(update={"training": training}))
    machine = Machine(torch.device("cpu"))
    setup = set_up(job, machine, job.make_student(0), None, seed=0)
    both = nn.ModuleList([setup.student, setup.losses])
    before = [p.detach().clone() for p in both.parameters()]
    torch.manual_seed(0)
    TrainingStep(setup, Teaching(job, machine.teacher(job.teacher), machine))(0)
    return setup, [p.detach() - b for p, b in zip(both.parameters(), before, strict=True)]


def test_a_clipped_step_keeps_its_direction(make: Make) -> None:
    """Students and projections are shortened by one factor, to the norm of the recipe."""
    hidden = HIDDEN.replace("warmup = 2", "warmup = 0")
    given = {"student": "student", "optimizer": "SGD", "rate": "1.0", "options": ""}
    job = make(**given, training="steps = 9" + hidden)
    (_, whole), (_, short) = (stepped(job, clip=clip) for clip in (None, 0.05))
    assert torch.stack([d.norm() for d in short]).norm() == pytest.approx(0.05, rel=1e-3)
    factors = [float(a.norm() / b.norm()) for a, b in zip(short, whole, strict=True) if b.norm()]
    assert len(factors) > 4 and factors == pytest.approx([factors[0]] * len(factors), rel=1e-3)
    assert factors[0] < 0.5
