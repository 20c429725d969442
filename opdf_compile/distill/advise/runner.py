"""One run of the race: a student trained for a number of optimizer steps, and scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from opdf_compile.distill.advise.folds import Fold, Folds
from opdf_compile.distill.advise.methods import Method
from opdf_compile.distill.advise.teaching import Teaching, moved
from opdf_compile.distill.recipe.job import Job
from opdf_compile.distill.run.order import Order
from opdf_compile.distill.run.schedule import remember_peaks, set_rates, share_of_peak

Clock = Callable[[], float]
_MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}
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
    """

    score: Score
    steps: int
    setup: float
    seconds: float
    around: float
    step_seconds: tuple[float, ...]

    @property
    def cost(self) -> float:
        """All seconds of the run."""
        return self.seconds + self.around


class OutOfTime(Exception):
    """The deadline passed within a run; what it learned is dropped."""


class Runner:
    """Trains and scores students of a job.

    Args:
        job: The prepared recipe.
        folds: Its examples.
        clock: Seconds; where the race's time comes from.
        deadline: When the clock passes it, a run ends with `OutOfTime`.

    Attributes:
        job: As given.
        device: Where everything computes.
        floating: Type of floating-point tensors; None leaves them.
        warmup: Share of a run in which the rate rises.
        teaching: Gives the teacher's outputs.
    """

    def __init__(self, job: Job, folds: Folds, clock: Clock, deadline: float) -> None:
        """Move the teacher to the device, and compute its outputs if the recipe keeps them."""
        self.job, self._folds, self._clock, self._deadline = job, folds, clock, deadline
        training, warmup = job.recipe.training, job.recipe.schedule.warmup
        self.device = _device(training.device)
        self.floating = torch.float64 if training.precision == "fp64" else None
        self._mixed = _MIXED.get(training.precision)
        # Steps of warm-up are those of a whole run; a shorter one has as large a share of it.
        self.warmup = warmup if warmup < 1 else min(0.999, warmup / whole_run(job))
        self.teaching = Teaching(job, folds, self.device, self.floating, self.autocast, self._check)

    def run(
        self, method: Method, lr: float, weight_decay: float, *, fold: Fold, seed: int, steps: int
    ) -> Trained:
        """Train one student from the start, and score it.

        The seed fixes start weights, order of examples and dropout, whatever the method.

        Raises:
            OutOfTime: The deadline passed.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            started = self._now()
            student = moved(self.job.make_student(seed), self.device, self.floating).train()
            made = self._now()
            run = _Run(self, method, student, lr, weight_decay, steps)
            ready = self._now()
            torch.manual_seed(seed)
            losses, marks = self._train(run, fold, seed, steps)
            trained = self._now()
            value = self._score(student, fold)
        tail = losses[-max(1, round(_TAIL * steps)) :]
        return Trained(
            Score(_finite(value), _finite(-float(torch.stack(tail).double().mean()))),
            steps,
            setup=ready - made,
            seconds=trained - made,
            around=made - started + self._now() - trained,
            step_seconds=tuple(b - a for a, b in zip(marks, marks[1:], strict=False)),
        )

    def _train(
        self, run: _Run, fold: Fold, seed: int, steps: int
    ) -> tuple[list[Tensor], list[float]]:
        training, losses, marks = self.job.recipe.training, [], [self._now()]
        order = Order(len(fold.train), self.job.recipe.data.batch, training.accumulation, seed)
        for step in range(steps):
            batches = [fold.train[torch.tensor(places)] for places in order.batches(step)]
            losses.append(run.step(batches, step))
            marks.append(self._check())
        return losses, marks

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        """The examples at these places of the pool, on the device."""
        examples = [self._folds.example(int(index)) for index in indices]
        batch: dict[str, Tensor] = moved(
            self.job.data.collate(examples), self.device, self.floating
        )
        return batch

    @torch.no_grad()
    def _score(self, student: nn.Module, fold: Fold) -> float:
        student.eval()
        metric, total, count = self.job.metric, 0.0, 0.0
        for indices in torch.split(fold.score, 2 * self.job.recipe.data.batch):
            batch = self.batch(indices)
            teacher = self.teaching.outputs(indices, batch) if metric.needs_teacher else None
            with self.autocast():
                outputs = self.job.forward(student, batch)
            part, examples = metric.pieces(outputs, teacher, batch)
            total, count = total + float(part), count + float(examples)
            self._check()
        return (total if metric.higher_is_better else -total) / count

    def autocast(self) -> Any:
        """The mixed precision of the recipe."""
        on = self._mixed is not None
        return torch.autocast(self.device.type, dtype=self._mixed, enabled=on)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self._clock()

    def _check(self) -> float:
        now = self._now()
        if now > self._deadline:
            raise OutOfTime
        return now


class _Run:
    """The parts of a run that a step uses."""

    def __init__(
        self,
        runner: Runner,
        method: Method,
        student: nn.Module,
        lr: float,
        weight_decay: float,
        steps: int,
    ) -> None:
        job, self._runner, self._student = runner.job, runner, student
        self._losses: nn.Module = moved(job.losses(), runner.device, runner.floating).train()
        more = {"alignment": job.alignment()} if method.aligned and job.alignment else {}
        optimizer = job.optimizer(student, method.plan, lr=lr, weight_decay=weight_decay, **more)
        projections = list(self._losses.parameters())
        self._optimizers = [optimizer, *_for_projections(job, projections)]
        for made in self._optimizers:
            remember_peaks(made)
        self._parameters, self._steps = [*student.parameters(), *projections], steps
        self._clip = job.recipe.training.clip
        scaled = job.recipe.training.precision == "fp16"
        self._scaler = torch.amp.GradScaler(runner.device.type, enabled=scaled)

    def step(self, batches: list[Tensor], step: int) -> Tensor:
        """One optimizer step; returns its mean loss, detached."""
        schedule = self._runner.job.recipe.schedule
        share = share_of_peak(step, self._steps, schedule.kind, self._runner.warmup)
        for optimizer in self._optimizers:
            set_rates(optimizer, share)
        parts = []
        for indices in batches:
            part = self._loss(indices) / len(batches)
            self._scaler.scale(part).backward()  # type: ignore[no-untyped-call]
            parts.append(part.detach())
        if self._clip is not None:
            for optimizer in self._optimizers:
                self._scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self._clip)
        for optimizer in self._optimizers:
            self._scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self._scaler.update()
        return torch.stack(parts).sum()

    def _loss(self, indices: Tensor) -> Tensor:
        runner = self._runner
        batch = runner.batch(indices)
        teacher = runner.teaching.outputs(indices, batch)
        with runner.autocast():
            outputs = runner.job.forward(self._student, batch)
            loss: Tensor = self._losses(outputs, teacher, batch)
        return loss


def _for_projections(job: Job, parameters: list[nn.Parameter]) -> list[Optimizer]:
    """What trains the losses' learned projections: the same on both sides, at the recipe's rate."""
    if not parameters:
        return []
    section = job.recipe.optimizer
    return [getattr(torch.optim, section.name)(parameters, lr=section.lr, **section.options)]


def whole_run(job: Job) -> int:
    """Optimizer steps of the recipe."""
    training, data = job.recipe.training, job.data
    order = Order(len(data.train), job.recipe.data.batch, training.accumulation, 0)
    return training.steps or (training.epochs or 1) * order.steps_per_epoch


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
