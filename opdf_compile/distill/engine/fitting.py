"""A training without a folder: from start to end in memory, in one process."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from opdf_compile.distill.engine.machine import machine_for
from opdf_compile.distill.engine.setup import Setup, set_up
from opdf_compile.distill.engine.step import TrainingStep
from opdf_compile.distill.engine.teaching import Teaching
from opdf_compile.distill.recipe import Job
from opdf_compile.io import fixed_randomness, seeded

After = Callable[[int, Tensor], None]
# What a long job says: a sentence, and the share of it that is done.
Say = Callable[[str, float], None]


def take_all(setup: Setup, teaching: Teaching, seed: int, after: After) -> None:
    """Take all steps of a setup; the caller's random numbers are as before.

    Args:
        setup: What is trained, and with what.
        teaching: The teacher's outputs.
        seed: Of dropout and of all else that is drawn on the way.
        after: Called after each step with its number, from 1 on, and its loss.
    """
    step = TrainingStep(setup, teaching)
    with seeded(seed), fixed_randomness():
        for number in range(setup.steps):
            parts, _ = step(number)
            after(number + 1, setup.loss(parts))


def fit(job: Job) -> nn.Module:
    """The student of a job after its last step, folded."""
    machine, seed = machine_for(job.recipe.training), job.recipe.training.seed
    student = machine.widened(job.make_student(seed))
    setup = set_up(job, machine, student, job.plan(student), seed=seed)
    teaching = Teaching(job, machine.teacher(job.teacher), machine)
    take_all(setup, teaching, seed, lambda _step, _loss: None)
    return setup.deployed()
