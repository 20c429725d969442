"""What the demo's race may spend, and what it found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from torch import Tensor, nn

from opdf_compile.planning import Plan

Method = Literal["plain", "overparam"]
METHODS: tuple[Method, ...] = ("plain", "overparam")
NAMES: dict[Method, str] = {"plain": "plain", "overparam": "over-parameterised"}


@dataclass(frozen=True)
class Budget:
    """What the comparison may spend; both methods get the same.

    Attributes:
        rates: Peak learning rates that each method tries.
        seeds: Each gives start weights and an order of the images.
        epochs: Passes over the training part, per run; None takes the recipe's.
        teacher_epochs: Passes for the teacher; None takes its recipe's.
    """

    rates: tuple[float, ...] = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    epochs: int | None = None
    teacher_epochs: int | None = None

    @property
    def runs(self) -> int:
        """Student trainings in all."""
        return len(METHODS) * len(self.rates) * len(self.seeds)


@dataclass(frozen=True)
class Curve:
    """A run, epoch by epoch.

    Attributes:
        loss: Mean training loss.
        accuracy: Validation accuracy, 0 to 1.
        seconds: Wall time of the whole run.
    """

    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class MethodRuns:
    """What one method reached.

    Attributes:
        method: "plain" or "overparam".
        validation: Validation accuracy by rate, one per seed.
        rate: The chosen rate: best mean validation accuracy, ties to the lower training loss.
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
class Outcomes:
    """Both outcomes and what they rest on.

    Attributes:
        plain: Of the student as it is.
        overparam: Of the over-parameterised one.
        plan: What that one trained with.
        teacher_accuracy: On the test part, 0 to 1.
        sizes: Images per part.
        example: Images for export.
    """

    plain: MethodRuns
    overparam: MethodRuns
    plan: Plan
    teacher_accuracy: float
    sizes: Mapping[str, int]
    example: Tensor

    @property
    def differences(self) -> tuple[float, ...]:
        """Over-parameterised minus plain test accuracy, seed by seed."""
        pairs = zip(self.overparam.accuracies, self.plain.accuracies, strict=True)
        return tuple(ours - theirs for ours, theirs in pairs)


def choose_rate(curves: Mapping[float, Sequence[Curve]]) -> float:
    """The rate of the best mean final validation accuracy; ties go to the lower training loss.

    A run that diverged has a loss that is no number; its rate loses every tie.
    """

    def merit(rate: float) -> tuple[float, float]:
        loss = fmean(curve.loss[-1] for curve in curves[rate])
        accuracy = fmean(curve.accuracy[-1] for curve in curves[rate])
        return accuracy, -loss if math.isfinite(loss) else -math.inf

    return max(curves, key=merit)
