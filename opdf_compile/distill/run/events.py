"""What a run tells while it runs; who draws it decides how.

    Started, Stage*, (Stepped | Validated | Saved)*, Stage*, Finished

Only the first process of a run tells anything. A resumed run that has nothing left to train goes
from `Started` to the stages of its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """The run is ready to train.

    Attributes:
        step: Steps that are done already: 0, or where a resumed run goes on.
        steps: Optimizer steps in all.
        steps_per_epoch: Optimizer steps in one pass over the data.
        device: Where it trains, as torch names it.
        processes: How many train together.
        metric: What validations compare.
        higher_is_better: Which way is up.
        notes: What a user should know, in sentences.
    """

    step: int
    steps: int
    steps_per_epoch: int
    device: str
    processes: int
    metric: str
    higher_is_better: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """Work beside the training: the teacher's cache, export, verification.

    Attributes:
        text: What is being done; the same words until it is done.
        share: How much of it, 0 to 1.
    """

    text: str
    share: float


@dataclass(frozen=True)
class Stepped:
    """Optimizer steps were made; told at the steps that the log holds.

    Attributes:
        step: The number of steps done, from 1 on.
        epoch: Passes over the data, with the part of the present one.
        loss: The weighted sum at this step.
        parts: Each loss by name, before its weight.
        lr: The learning rate of the first group.
        seconds: Since the run (or its resumption) began to train.
    """

    step: int
    epoch: float
    loss: float
    parts: Mapping[str, float]
    lr: float
    seconds: float


@dataclass(frozen=True)
class Validated:
    """A validation was made.

    Attributes:
        step: The number of steps done.
        epoch: Passes over the data.
        value: The metric of the weights that would ship now.
        best: The best so far, this one included.
        best_step: When it was reached.
        patience: Validations without a better one that are left, or None without early stopping.
    """

    step: int
    epoch: float
    value: float
    best: float
    best_step: int
    patience: int | None


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on the disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class Finished:
    """Everything is done.

    Attributes:
        verdict: The parity verdict, "not_verified", or None where nothing was exported.
        metrics: The metric on the test part by model: "untouched", "teacher", "student", "onnx".
        bundle: What ships, or None where the recipe exports nothing.
        report: The page.
    """

    verdict: str | None
    metrics: Mapping[str, float]
    bundle: Path | None
    report: Path = field(default_factory=Path)


Event = Started | Stage | Stepped | Validated | Saved | Finished
Watch = Callable[[Event], None]


def silent(event: Event) -> None:
    """Watch nothing."""
