"""What a run trains with, built from a job for one process: everything but where the run is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from opdf_compile.distill.losses.weighted import WeightedSum
from opdf_compile.distill.recipe.job import Batch, Job
from opdf_compile.distill.run.batches import Batches
from opdf_compile.distill.run.evaluating import evaluating
from opdf_compile.distill.run.order import Order
from opdf_compile.distill.run.schedule import remember_peaks
from opdf_compile.distill.run.teaching import names_read
from opdf_compile.errors import InputError
from opdf_compile.graph.sharing import deep_copy
from opdf_compile.plan.value import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, eq=False)
class Setup:
    """What is trained, and by what.

    Attributes:
        student: On the device, in the precision of the recipe.
        teacher: The same, or None.
        plan: What is over-parameterised, or None.
        optimizer: Of the student.
        losses: The weighted sum, with its learned projections.
        side: The optimizer of the projections, or None without any.
        average: The average of the weights, or None without one.
        batches: Makes batches.
        order: Which examples make up which step.
        steps: Optimizer steps in all.
        reads: Which of the teacher's outputs are read.
    """

    student: nn.Module
    teacher: nn.Module | None
    plan: Plan | None
    optimizer: Optimizer
    losses: WeightedSum
    side: Optimizer | None
    average: AveragedModel | None
    batches: Batches
    order: Order
    steps: int
    reads: frozenset[str]


def build(job: Job, accelerator: Accelerator) -> Setup:
    """Build everything.

    Args:
        job: A prepared recipe.
        accelerator: Knows the device.
    """
    recipe, device = job.recipe, accelerator.device
    training = recipe.training
    double = training.precision == "fp64"
    student = job.make_student(training.seed)
    teacher = job.teacher
    if double:
        student = student.double()
        teacher = None if teacher is None else deep_copy(teacher).double()
    plan = job.plan(student)
    student.to(device)
    if teacher is not None:
        teacher.to(device)
    batches = Batches(job.data, device, double)
    losses, reads = _losses(job, student, teacher, batches, double)
    aligned = None if plan is None or job.alignment is None else job.alignment()
    options = {} if aligned is None else {"alignment": aligned}
    average = None
    if training.ema is not None:
        # torch gives this function no types.
        make_average: Any = get_ema_multi_avg_fn
        average = AveragedModel(student, multi_avg_fn=make_average(training.ema))
    optimizer = job.optimizer(student, plan, **options)
    remember_peaks(optimizer)
    order = Order(len(job.data.train), recipe.data.batch, training.accumulation, training.seed)
    return Setup(
        student=student,
        teacher=teacher,
        plan=plan,
        optimizer=optimizer,
        losses=losses,
        side=_side(job, losses),
        average=average,
        batches=batches,
        order=order,
        steps=training.steps or (training.epochs or 1) * order.steps_per_epoch,
        reads=reads,
    )


def _losses(
    job: Job, student: nn.Module, teacher: nn.Module | None, batches: Batches, double: bool
) -> tuple[WeightedSum, frozenset[str]]:
    """The losses, tried on the example, and what they read of the teacher."""
    with torch.random.fork_rng():
        torch.manual_seed(job.recipe.training.seed)
        losses = job.losses().to(batches.device)
        if double:
            losses = losses.double()
        example: Batch = batches.moved(job.example)
        with evaluating(student), evaluating(losses):
            reads = names_read(job, student, teacher, losses, example)
    return losses.train(), frozenset(reads)


def _side(job: Job, losses: WeightedSum) -> Optimizer | None:
    """What trains the learned projections: as the plain student would be, whatever is trained.

    So a comparison of plain and over-parameterised training does not compare their projections.
    """
    parameters = [p for p in losses.parameters() if p.requires_grad]
    if not parameters:
        return None
    section = job.recipe.optimizer
    made: Any = getattr(torch.optim, section.name, None)
    if made is None:
        raise InputError(
            f"[optimizer] name is {section.name!r}, wanted a class of torch.optim; correct it"
        )
    side: Optimizer = made(parameters, lr=section.lr, **section.options)
    remember_peaks(side)
    return side


def unused_parameters(setup: Setup, objective: nn.Module, teacher: Any, batch: Batch) -> bool:
    """Whether the objective leaves a parameter without a gradient: DDP has to look for those."""
    with torch.random.fork_rng(), evaluating(objective):
        pieces = objective(batch, teacher)
        torch.autograd.backward([total for total, _ in pieces.values()])
    trained = [p for p in objective.parameters() if p.requires_grad]
    unused = any(p.grad is None for p in trained)
    for parameter in trained:
        parameter.grad = None
    return unused
