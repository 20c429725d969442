"""What a training trains with, built from a job: everything but where it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from opdf_compile.distill.engine.batches import Batches
from opdf_compile.distill.engine.machine import Machine
from opdf_compile.distill.engine.order import ExampleOrder
from opdf_compile.distill.engine.schedule import remember_peaks
from opdf_compile.distill.losses import WeightedSum
from opdf_compile.distill.online import OnlineTeacher
from opdf_compile.distill.recipe import Job, optimizer_class, optimizer_options
from opdf_compile.io import fixed_randomness, seeded
from opdf_compile.planning import Plan
from opdf_compile.training import Overparam, branch, fold, has_branches


@dataclass(frozen=True, eq=False)
class Setup:
    """What is trained, and by what.

    Attributes:
        job: What it is for.
        machine: Where it trains.
        student: On the device, in the precision of the recipe; with branches where the plan has
            sites.
        plan: What is over-parameterised, or None.
        optimizer: Of the student.
        losses: The weighted sum, with its learned projections.
        side: The optimizer of what learns beside the student, or None without any.
        online: The teacher with the modules that learn along, or None.
        average: The average of the weights, or None without one.
        batches: Makes batches.
        order: Which examples make up which step.
        steps: Optimizer steps in all.
        warmup: The share of them in which the rate rises.
    """

    job: Job
    machine: Machine
    student: nn.Module
    plan: Plan | None
    optimizer: Optimizer
    losses: WeightedSum
    side: Optimizer | None
    online: OnlineTeacher | None
    average: AveragedModel | None
    batches: Batches
    order: ExampleOrder
    steps: int
    warmup: float

    @property
    def beside(self) -> list[nn.Parameter]:
        """What learns beside the student: projections, and modules in the teacher."""
        return [p for module in (self.losses, self.online) if module for p in module.parameters()]

    def looked_at_twice(
        self, batch: dict[str, Tensor], number: int = 0, place: int = 0, rank: int = 0
    ) -> dict[str, Tensor]:
        """A batch with its second look, if there is one: a function of the step and the seed."""
        if self.job.augmentation is None:
            return batch
        rng = np.random.default_rng([self.order.seed, number, place, rank])
        return self.job.augmentation(batch, rng)

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """All that step."""
        return (self.optimizer,) if self.side is None else (self.optimizer, self.side)

    def loss(self, parts: Mapping[str, Any]) -> Any:
        """The objective of its parts: their weighted sum."""
        return sum(self.losses.weights[name] * value for name, value in parts.items())

    @property
    def measured(self) -> nn.Module:
        """What validations look at: the average where there is one, else the student."""
        averaged: nn.Module | None = None if self.average is None else self.average.module
        return self.student if averaged is None else averaged

    def deployed(self) -> nn.Module:
        """The student that ships: the average of its weights, or itself, folded."""
        if self.average is None and isinstance(self.optimizer, Overparam):
            return fold(self.optimizer)
        return fold(self.measured) if has_branches(self.measured) else self.measured


def set_up(
    job: Job,
    machine: Machine,
    student: nn.Module,
    plan: Plan | None,
    *,
    seed: int,
    steps: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    aligned: bool = True,
) -> Setup:
    """Build everything for one student, which is moved to the device.

    Args:
        job: A prepared recipe.
        machine: Where it trains.
        student: A fresh one, in the precision of the recipe.
        plan: How it is over-parameterised; None trains it as it is.
        seed: Of what losses draw, and of the order of the examples.
        steps: In place of the recipe's; the warm-up keeps its share of them.
        lr: In place of the recipe's peak rate.
        weight_decay: In place of the recipe's.
        aligned: Whether the recipe's alignment, if it has one, pulls the cores.
    """
    training = job.recipe.training
    student.to(machine.device)
    if plan is not None and plan.sites:
        student = branch(student, plan)
    # A loss of one's own may draw start weights: the same, whatever the student's took before it.
    with seeded(seed), fixed_randomness():
        losses = job.losses()
    losses = losses.double() if machine.double else losses
    losses.to(machine.device).train()
    batches = Batches(job.data, machine)
    with seeded(seed), fixed_randomness():
        online = _online(job, machine, batches)
    pulling = job.alignment if aligned and plan is not None else None
    average = None
    if training.ema is not None:
        # torch gives this function no types.
        make_average: Any = get_ema_multi_avg_fn
        average = AveragedModel(student, multi_avg_fn=make_average(training.ema))
    options = {} if pulling is None else {"alignment": pulling()}
    optimizer = job.optimizer(student, plan, lr=lr, weight_decay=weight_decay, **options)
    remember_peaks(optimizer)
    whole, warmup = whole_run(job), job.recipe.schedule.warmup
    return Setup(
        job=job,
        machine=machine,
        student=student,
        plan=plan,
        optimizer=optimizer,
        losses=losses,
        side=_side(job, losses, online),
        online=online,
        average=average,
        batches=batches,
        order=example_order(job, seed),
        steps=whole if steps is None else steps,
        # Steps of warm-up are those of a whole run; a shorter one has as large a share of it.
        warmup=warmup if warmup < 1 else warmup / whole,
    )


def example_order(job: Job, seed: int) -> ExampleOrder:
    """The order of a job's examples."""
    recipe = job.recipe
    return ExampleOrder(len(job.data.train), recipe.data.batch, recipe.training.accumulation, seed)


def whole_run(job: Job) -> int:
    """Optimizer steps of the recipe."""
    training = job.recipe.training
    return training.steps or (training.epochs or 1) * example_order(job, 0).steps_per_epoch


def _online(job: Job, machine: Machine, batches: Batches) -> OnlineTeacher | None:
    """The teacher with the recipe's modules in it."""
    teacher = machine.teacher(job.teacher)
    if job.online is None or teacher is None:
        return None
    return job.online(teacher, batches.moved(job.example))


def _side(job: Job, losses: WeightedSum, online: OnlineTeacher | None) -> Optimizer | None:
    """What trains all that learns beside the student: as the plain student would be.

    So a comparison of plain and over-parameterised training does not compare their projections.
    """
    section = job.recipe.optimizer
    groups: list[dict[str, Any]] = []
    projections = [p for p in losses.parameters() if p.requires_grad]
    if projections:
        groups.append({"params": projections})
    if online is not None and job.recipe.online is not None:
        lr = job.recipe.online.lr or section.lr
        groups.append({"params": list(online.parameters()), "lr": lr})
    if not groups:
        return None
    make: Any = optimizer_class(section)
    side: Optimizer = make(groups, lr=section.lr, **optimizer_options(section))
    remember_peaks(side)
    return side
