"""One run of the race: a student trained for a number of optimizer steps, and scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from opdf_compile.distill.advise.entrants import Entrant
from opdf_compile.distill.advise.holdouts import Holdout, Holdouts
from opdf_compile.distill.engine import (
    Batches,
    Evaluation,
    Remembered,
    Setup,
    Teaching,
    joined,
    machine_for,
    set_up,
    take_all,
)
from opdf_compile.distill.recipe import Batch, Job
from opdf_compile.graph import phase_flags

Clock = Callable[[], float]
# What is done with a student that was trained.
Then = Callable[[Setup, Teaching], None]
# The last part of a run whose mean training loss breaks ties of the score.
_TAIL = 0.1


class Score(NamedTuple):
    """How good a run is; the larger, the better, in this order.

    Attributes:
        value: The recipe's metric, negated where lower is better; minus infinity if it diverged.
        tie: Minus the mean training loss of the last tenth of the run.
    """

    value: float
    tie: float


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        score: How good it is.
        steps: Optimizer steps.
        setup: Seconds from the student to the first step: optimizer, decomposition.
        seconds: Seconds of training, `setup` included.
        around: Seconds to make the student and to score it.
        step_seconds: Seconds of each step.
        wall: All seconds of the run on the clock of the budget.
    """

    score: Score
    steps: int
    setup: float
    seconds: float
    around: float
    step_seconds: tuple[float, ...]
    wall: float = 0.0

    @property
    def cost(self) -> float:
        """All seconds of the run."""
        return self.seconds + self.around


class OutOfTime(Exception):
    """The deadline passed within a run; what it learned is dropped."""


class Trainer:
    """Trains and scores students of a job.

    Args:
        job: The prepared recipe.
        holdouts: Its examples.
        clock: Seconds; where the race's time comes from.
        deadline: When the clock passes it, a run ends with `OutOfTime`.
        meter: Seconds that a run is said to cost, where that is another clock.
    """

    def __init__(
        self,
        job: Job,
        holdouts: Holdouts,
        clock: Clock,
        deadline: float,
        meter: Clock | None = None,
    ) -> None:
        """Move the teacher to the device, and compute its outputs if the recipe keeps them."""
        self._job, self._holdouts, self._clock, self._deadline = job, holdouts, clock, deadline
        self._meter = clock if meter is None else meter
        self._machine = machine_for(job.recipe.training)
        self._teacher = self._machine.teacher(job.teacher)
        self._kept = self._remembered()

    def run(
        self,
        method: Entrant,
        lr: float,
        weight_decay: float,
        *,
        holdout: Holdout,
        seed: int,
        steps: int,
        then: Then | None = None,
    ) -> Trained:
        """Train one student from the start, and score it.

        The seed fixes start weights, order of examples and dropout, whatever the method. `then` is
        shown the trained student, after the last of the seconds that count.

        Raises:
            OutOfTime: The deadline passed.
        """
        job, machine = self._holdouts.job(holdout), self._machine
        if method.optimizer is not None:
            job = replace(job, optimizer=method.optimizer)
        begun, started = self._clock(), self._now()
        student = machine.widened(job.make_student(seed)).to(machine.device)
        made = self._now()
        setup = set_up(
            job,
            machine,
            student,
            method.plan,
            seed=seed,
            steps=steps,
            lr=lr,
            weight_decay=weight_decay,
            aligned=method.aligned,
        )
        teaching = Teaching(job, self._teacher, machine, self._rows(holdout))
        losses: list[Tensor] = []
        ready = self._now()
        marks = [ready]

        def after(_step: int, loss: Tensor) -> None:
            losses.append(loss)
            marks.append(self._check())

        take_all(setup, teaching, seed, after)
        trained = self._now()
        value = self._score(setup, teaching)
        tail = losses[-max(1, round(_TAIL * steps)) :]
        around, wall = made - started + self._now() - trained, self._clock() - begun
        if then is not None:
            then(setup, teaching)
        return Trained(
            Score(_finite(value), _finite(-float(torch.stack(tail).mean()))),
            steps,
            setup=ready - made,
            seconds=trained - made,
            around=around,
            step_seconds=tuple(b - a for a, b in zip(marks, marks[1:], strict=False)),
            wall=wall,
        )

    def _score(self, setup: Setup, teaching: Teaching) -> float:
        """The metric on the holdout's examples to score, turned so that more is better."""
        job = setup.job
        evaluation = Evaluation(job, setup.batches, teaching, 2 * job.recipe.data.batch)

        def forward(batch: Batch) -> dict[str, Tensor]:
            self._check()
            return job.forward(setup.measured, batch)

        with phase_flags(setup.measured, "eval"):
            value = evaluation(forward, "validation", alone=True)
        return value if job.metric.higher_is_better else -value

    def _remembered(self) -> dict[str, Tensor]:
        """The teacher's outputs on all examples, where the recipe keeps them."""
        job, teacher, section = self._job, self._teacher, self._job.recipe.teacher
        if teacher is None or section is None or not section.cache:
            return {}
        teaching = Teaching(job, teacher, self._machine)
        batches = Batches(job.data, self._machine)
        pieces = []
        for indices in torch.split(torch.arange(len(self._holdouts.pool)), job.recipe.data.batch):
            found = teaching.outputs(teacher, batches.of(self._holdouts.pool, indices.tolist()))
            pieces.append({name: tensor.cpu() for name, tensor in found.items() if tensor.dim()})
            self._check()
        ragged = job.recipe.language is not None
        return joined(pieces, "training and validation", ragged=ragged)

    def _rows(self, holdout: Holdout) -> dict[str, Remembered]:
        if not self._kept:
            return {}
        parts = {"train": holdout.train, "validation": holdout.score}
        return {part: Remembered(self._kept, places.tolist()) for part, places in parts.items()}

    def _now(self) -> float:
        # A GPU works on after a call has returned: without waiting, another step would pay for it.
        if self._machine.device.type == "cuda":
            torch.cuda.synchronize(self._machine.device)
        return self._meter()

    def _check(self) -> float:
        now = self._now()
        if self._clock() > self._deadline:
            raise OutOfTime
        return now


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
