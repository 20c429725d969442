"""The fair comparison: plain and over-parameterised distillation of one student.

Both get the same teacher, images in the same order, start weights and number of optimizer steps.
The best learning rate is not the same for weights and for cores, so a comparison at one fixed rate
would measure the step size. Each method therefore gets the same grid of rates, and picks its rate
on the validation split; accuracies are stated on the test split, which no choice has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opdf_compile.distill.digit_networks import Student, Teacher
from opdf_compile.distill.digits import Digits
from opdf_compile.distill.fitting import Curve, fit, reproducible, score
from opdf_compile.distill.losses import distillation_loss
from opdf_compile.errors import InternalError
from opdf_compile.graph.sharing import deep_copy
from opdf_compile.graph.trace import trace
from opdf_compile.plan.choose import plan as choose_plan
from opdf_compile.plan.value import Plan
from opdf_compile.training.folding import fold
from opdf_compile.training.inline.expanded import Expanded
from opdf_compile.training.inline.expanding import expand

Method = Literal["plain", "overparam"]
METHODS: tuple[Method, ...] = ("plain", "overparam")
Report = Callable[[str, float], None]
NAMES: dict[Method, str] = {"plain": "plain", "overparam": "over-parameterised"}
EXAMPLE_BATCH = 64
# Of the time: the teacher's run against the students' sixty.
_TEACHERS_SHARE = 0.13


@dataclass(frozen=True)
class Budget:
    """What the comparison may spend; both methods get the same.

    Attributes:
        rates: Peak learning rates that each method tries.
        seeds: Each gives start weights and an order of the images.
        epochs: Passes over the training split, per run.
        batch: Images per optimizer step.
        teacher_epochs: Passes for the teacher.
        teacher_rate: Its peak learning rate.
        cores: Cores per weight of the over-parameterised student.
    """

    rates: tuple[float, ...] = (0.003, 0.01, 0.02, 0.04, 0.08, 0.16)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    epochs: int = 15
    batch: int = 64
    teacher_epochs: int = 20
    teacher_rate: float = 0.004
    cores: int = 3

    @property
    def runs(self) -> int:
        """Student trainings in all."""
        return len(METHODS) * len(self.rates) * len(self.seeds)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one method reached.

    Attributes:
        method: "plain" or "overparam".
        validation: Validation accuracy by rate, one per seed.
        rate: The chosen rate: best mean validation accuracy, ties to the lower cross-entropy.
        curves: The runs at that rate, one per seed.
        accuracies: Test accuracies of their final (folded) students, one per seed.
        student: The final (folded) student of the first seed, in eval mode.
    """

    method: Method
    validation: Mapping[float, tuple[float, ...]]
    rate: float
    curves: tuple[Curve, ...]
    accuracies: tuple[float, ...]
    student: nn.Module

    @property
    def accuracy(self) -> float:
        """Mean test accuracy over the seeds."""
        return fmean(self.accuracies)

    @property
    def seconds(self) -> float:
        """Mean wall time of a run at the chosen rate."""
        return fmean(curve.seconds for curve in self.curves)

    @property
    def at_edge(self) -> bool:
        """Whether the chosen rate is the first or last of the grid: a better one may lie beyond."""
        return self.rate in (min(self.validation), max(self.validation))


@dataclass(frozen=True, eq=False)
class Race:
    """Both outcomes, the plan that the over-parameterised one trained with, and the teacher's."""

    plain: Outcome
    overparam: Outcome
    plan: Plan
    teacher_accuracy: float

    @property
    def differences(self) -> tuple[float, ...]:
        """Over-parameterised minus plain test accuracy, seed by seed."""
        pairs = zip(self.overparam.accuracies, self.plain.accuracies, strict=True)
        return tuple(ours - theirs for ours, theirs in pairs)


def race(digits: Digits, budget: Budget, report: Report) -> Race:
    """Train the teacher, then every run of both methods.

    Args:
        digits: The three splits.
        budget: What may be spent.
        report: Called with a sentence and the share that is done.
    """
    report("training the teacher", 0.0)
    with reproducible(0):
        teacher, soft = _train_teacher(digits, budget)
    laps = _Laps(report, budget.runs)
    runs: list[_Run] = []
    for seed in budget.seeds:
        with reproducible(seed):
            student = Student()
            images = digits.train.images[:EXAMPLE_BATCH]
            traced = trace(student, (images,))
            plan = choose_plan(traced, cores=budget.cores)
            for rate in budget.rates:
                for method in METHODS:
                    laps.next(f"training: {NAMES[method]}, seed {seed}, rate {rate:g}")
                    # Both start from the same weights: a copy of them, or cores that compose them.
                    start = deep_copy(student) if method == "plain" else expand(traced, plan)
                    curve = _distil(start, digits, soft, budget, rate, seed)
                    runs.append(_Run(method, rate, curve, start))
    plain, overparam = (_outcome(m, [r for r in runs if r.method == m], digits) for m in METHODS)
    return Race(plain, overparam, plan, score(teacher, digits.test)[0])


@dataclass(frozen=True, eq=False)
class _Run:
    method: Method
    rate: float
    curve: Curve
    model: nn.Module


class _Laps:
    """Turns finished runs into the share of the race that is done."""

    def __init__(self, report: Report, runs: int) -> None:
        self._report, self._runs, self._done = report, runs, 0

    def next(self, text: str) -> None:
        self._report(text, _TEACHERS_SHARE + (1 - _TEACHERS_SHARE) * self._done / self._runs)
        self._done += 1


def _train_teacher(digits: Digits, budget: Budget) -> tuple[nn.Module, Tensor]:
    """The teacher, and its logits on the training images."""
    teacher, labels = Teacher(), digits.train.labels
    fit(
        teacher,
        digits.train,
        digits.validation,
        loss=lambda logits, indices: F.cross_entropy(logits, labels[indices]),
        rate=budget.teacher_rate,
        epochs=budget.teacher_epochs,
        batch=budget.batch,
        seed=0,
    )
    with torch.no_grad():
        return teacher, teacher(digits.train.images)


def _distil(
    model: nn.Module, digits: Digits, soft: Tensor, budget: Budget, rate: float, seed: int
) -> Curve:
    labels = digits.train.labels
    return fit(
        model,
        digits.train,
        digits.validation,
        loss=lambda logits, i: distillation_loss(logits, soft[i], labels[i]),
        rate=rate,
        epochs=budget.epochs,
        batch=budget.batch,
        seed=seed,
    )


def _outcome(method: Method, runs: list[_Run], digits: Digits) -> Outcome:
    by_rate: dict[float, list[Curve]] = {}
    for run in runs:
        by_rate.setdefault(run.rate, []).append(run.curve)
    rate = choose_rate(by_rate)
    chosen = [run for run in runs if run.rate == rate]
    students = [_folded(run.model) for run in chosen]
    return Outcome(
        method=method,
        validation={r: tuple(c.accuracy[-1] for c in curves) for r, curves in by_rate.items()},
        rate=rate,
        curves=tuple(run.curve for run in chosen),
        accuracies=tuple(score(student, digits.test)[0] for student in students),
        student=students[0],
    )


def choose_rate(curves: Mapping[float, Sequence[Curve]]) -> float:
    """The rate of the best mean final validation accuracy; ties go to the lower cross-entropy.

    A run that diverged has a cross-entropy that is no number; its rate loses every tie.
    """

    def merit(rate: float) -> tuple[float, float]:
        entropy = fmean(curve.cross_entropy[-1] for curve in curves[rate])
        accuracy = fmean(curve.accuracy[-1] for curve in curves[rate])
        return accuracy, -entropy if math.isfinite(entropy) else -math.inf

    return max(curves, key=merit)


def _folded(model: nn.Module) -> nn.Module:
    if not isinstance(model, Expanded):
        return model
    student = fold(model)
    if not isinstance(student, nn.Module):
        raise InternalError(f"fold turned the demo's student into a {type(student).__name__}")
    return student.eval()
