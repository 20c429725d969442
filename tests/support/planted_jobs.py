"""Jobs whose right advice is known, and a clock that only steps move.

A student of one weight reads an 8 x 8 matrix X as a row of 64 numbers and is to give <W*, X>. With
modes (8, 8), n = 2 factorises the very matrix W = A B.

helps    W* has rank 1 and there are 40 examples for 64 unknowns. Gradient descent on W ends at the
         solution of least norm, which is wrong where no example looked, at every rate and decay; on
         A and B, from a small start, it ends near the solution of least rank, which is W*.
         Source: Gunasekar et al., Implicit Regularization in Matrix Factorization (2017).
hurts    W* is orthogonal: all its singular values are equal. There are 300 examples, so that the
         problem is well conditioned and plain gradient descent is there in a few steps; A and B
         start near the saddle at zero, which slows them in every direction.
more     As hurts, with inputs whose columns are of very different sizes: along the small ones
         gradient descent is slow, at any rate that the large ones bear, so that more steps help and
         more factors do not.
nothing  The labels are noise: there is nothing to gain by anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.distill.losses import TaskLoss, WeightedSum
from opdf_compile.distill.recipe import Data, Job, Recipe
from opdf_compile.distill.recipe.job import Metric

SIDE = 8
START = 0.1
NOISE = 0.05
VALIDATION = 200
# Seconds of a step on the clock of steps: over-parameterised ones cost twice as much.
STEP_SECONDS: Mapping[bool, float] = {False: 0.001, True: 0.002}


class Rows:
    """Examples by index."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.inputs[index], "labels": self.labels[index]}


@dataclass
class StepClock:
    """Seconds that pass only when told.

    Attributes:
        now: Seconds since the start.
        steps: Optimizer steps so far, by whether they were over-parameterised.
    """

    now: float = 0.0
    steps: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})

    def __call__(self) -> float:
        return self.now

    def step(self, over: bool) -> None:
        self.now += STEP_SECONDS[over]
        self.steps[over] += 1


def recipe(**training: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "student": {"model": "planted_jobs.py:student"},
            "data": {"source": "planted_jobs.py:data", "batch": 16},
            "loss": [{"kind": "task", "of": "mse"}],
            "plan": {"cores": 2},
            "optimizer": {"name": "SGD", "lr": 0.03},
            "training": {"steps": 300, "device": "cpu", "metric": "mse", **training},
        }
    )


def job(case: str, seed: int, clock: StepClock | None = None, **training: Any) -> Job:
    """A planted job.

    Args:
        case: helps, hurts, more or nothing.
        seed: Of the target and the examples.
        clock: Moved by each step; None where the race has a real clock.
        **training: Keys of the recipe's section.
    """
    generator = torch.Generator().manual_seed(seed)
    count = 40 if case == "helps" else 300
    inputs = torch.randn(count + VALIDATION, SIDE * SIDE, generator=generator)
    if case == "more":
        inputs = inputs * torch.logspace(0, -1.3, SIDE * SIDE)
    noise = torch.randn(len(inputs), 1, generator=generator)
    labels = noise if case == "nothing" else inputs @ target(case, generator).T + NOISE * noise
    rows = Rows(inputs[:count], labels[:count]), Rows(inputs[count:], labels[count:])
    data = Data(*rows, Rows(inputs[:0], labels[:0]), ("x",), "labels", collate, "0", case)
    return Job(
        recipe=recipe(**training),
        base=Path(),
        make_student=student,
        teacher=None,
        data=data,
        example=collate([data.train[0], data.train[1]]),
        losses=lambda: WeightedSum({"task": (1.0, TaskLoss("mse"))}),
        plan=lambda model: opdf.plan(model, cores=2),
        optimizer=stepping(clock),
        metric=Metric("mse", squared_error, higher_is_better=False),
    )


def target(case: str, generator: torch.Generator) -> Tensor:
    """W* as a row, of norm 1."""
    if case == "helps":
        outer = torch.randn(SIDE, 1, generator=generator) @ torch.randn(
            1, SIDE, generator=generator
        )
        return (outer / outer.norm()).reshape(1, -1)
    orthogonal = torch.linalg.qr(torch.randn(SIDE, SIDE, generator=generator))[0]
    return (orthogonal / SIDE**0.5).reshape(1, -1)


def student(seed: int) -> nn.Module:
    made = nn.Linear(SIDE * SIDE, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    start = START / SIDE * torch.randn(1, SIDE * SIDE, generator=generator)
    made.weight = nn.Parameter(start)
    return made


def collate(examples: Any) -> dict[str, Tensor]:
    return {name: torch.stack([e[name] for e in examples]) for name in examples[0]}


def squared_error(outputs: Any, _teacher: Any, batch: Any) -> tuple[Tensor, Tensor]:
    error = (outputs["logits"] - batch["labels"]).square().sum()
    return error, torch.tensor(float(len(batch["labels"])))


def stepping(clock: StepClock | None) -> Callable[..., torch.optim.Optimizer]:
    def make(
        model: nn.Module, plan: opdf.Plan | None, *, lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        options = {"lr": lr, "weight_decay": weight_decay}
        made = (
            torch.optim.SGD(model.parameters(), **options)
            if plan is None
            else opdf.Overparam(model, torch.optim.SGD, plan=plan, **options)
        )
        if clock is not None:
            made.register_step_post_hook(lambda *_: clock.step(plan is not None))
        return made

    return make
