"""A prepared task and a student for it: what a run needs, whatever the task is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import opdf_compile as opdf
from quality.second.students import WIDTH, Stack, maker, seeded
from quality.second.tasks import PARTS, SOURCES

BATCH = 32
SOFT_SHARE, TEMPERATURE = 0.9, 4.0
# What a run that diverged is scored with.
MOST_LOSS = 10.0


@dataclass(frozen=True)
class Part:
    """One split: inputs ``(n, channels, ..)``, labels, the teacher's logits ``(n, classes)``."""

    inputs: Tensor
    labels: Tensor
    teacher: Tensor


@dataclass(frozen=True, eq=False)
class Problem:
    """A task for one kind of student.

    Attributes:
        task: Its name.
        student: Name of the student.
        steps: Length of a run of the fixed regime.
        parts: Splits by name.
        make: Makes fresh students.
    """

    task: str
    student: str
    steps: int
    parts: Mapping[str, Part]
    make: Callable[[], Stack]

    @property
    def count(self) -> int:
        """Rows to train on."""
        return len(self.parts["train"].labels)

    def begun(self, seed: int) -> nn.Module:
        """A student that depends on the seed alone."""
        return seeded(self.make, seed)

    @functools.cached_property
    def traced(self) -> opdf.Traced:
        """The student's graph, which is that of every seed."""
        return opdf.trace(self.begun(0), (self.parts["train"].inputs[:2],))

    def loss(self, model: nn.Module, rows: Tensor, kind: str) -> Tensor:
        """Mean loss of training rows.

        Args:
            model: The student.
            rows: ``(b,)``.
            kind: "labels": cross-entropy. "distil": 0.1 of it and 0.9 T^2 KL to the teacher, T = 4.
        """
        part = self.parts["train"]
        logits = model(part.inputs[rows])
        hard = F.cross_entropy(logits, part.labels[rows])
        if kind == "labels":
            return hard
        soft = F.kl_div(
            F.log_softmax(logits / TEMPERATURE, 1),
            F.log_softmax(part.teacher[rows] / TEMPERATURE, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - SOFT_SHARE) * hard + SOFT_SHARE * TEMPERATURE**2 * soft

    @torch.no_grad()
    def scores(self, model: nn.Module, part: str) -> tuple[float, float]:
        """Accuracy and cross-entropy on a part, in eval mode."""
        found = self.parts[part]
        logits = model.eval()(found.inputs)
        if not bool(torch.isfinite(logits).all()):
            return 0.0, MOST_LOSS
        right = (logits.argmax(1) == found.labels).double().mean()
        loss = F.cross_entropy(logits, found.labels)
        return float(right), min(float(loss), MOST_LOSS)


def load(path: Path, task: str, student: str, steps: int | None = None) -> Problem:
    """A task of the prepared file.

    Args:
        path: What `prepare` wrote.
        task: Its name.
        student: A name in `students.SHAPES`.
        steps: Instead of the task's own.
    """
    with np.load(path) as arrays:
        parts = {
            part: Part(
                *(
                    torch.from_numpy(arrays[f"{task}/{part}/{what}"])
                    for what in ("inputs", "labels", "teacher")
                )
            )
            for part in PARTS
        }
        classes = int(arrays[f"{task}/classes"])
    source = SOURCES[task]
    channels = parts["train"].inputs.shape[1]
    make = maker(student, source.axes, channels, classes, WIDTH)
    return Problem(task, student, steps or source.steps, parts, make)
