"""What int8 does to the students of a contest: the metric before and after, seed by seed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from opdf_compile.distill.advise.contest.ruling import Rounded
from opdf_compile.distill.engine import (
    Batches,
    Evaluation,
    Setup,
    Teaching,
    arrays_of,
    exported_forward,
    spans,
)
from opdf_compile.distill.recipe import Job
from opdf_compile.graph import deep_copy, phase_flags
from opdf_compile.io import build_export, quantise

# More seeds would mostly export; more examples hardly widen the ranges.
SEEDS = 4
_CALIBRATION = 512


class Rounding:
    """Quantises students as they are shown, and keeps what they score by lane.

    Attributes:
        found: For each lane, the metric before and after, a pair per seed.
    """

    def __init__(self) -> None:
        self.found: dict[int, list[tuple[float, float]]] = {}

    def of(self, lane: int) -> Rounded | None:
        """What int8 did to a lane; None where none of its students was shown."""
        pairs = self.found.get(lane)
        return None if not pairs else Rounded(*map(tuple, zip(*pairs, strict=True)))

    def measure(self, lane: int, setup: Setup, teaching: Teaching) -> None:
        """Score a trained student before and after int8, on the examples of its run.

        Raises:
            UserError: It cannot be exported, or not quantised.
        """
        job, student = setup.job, setup.deployed()
        evaluation = Evaluation(job, setup.batches, teaching, 2 * job.recipe.data.batch)
        with phase_flags(student, "eval"), tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "int8.onnx"
            args, kwargs = job.data.arguments(job.example)
            made = deep_copy(student).to("cpu", torch.float32)
            model = build_export(made, args, kwargs or None).model
            names = tuple(str(value.name) for value in model.graph.inputs)
            quantise(model, calibration(job, setup.batches, names), file)
            after = evaluation(
                exported_forward(job, setup.batches, student, file), "validation", alone=True
            )
            before = evaluation.of(student, "validation", alone=True)
        self.found.setdefault(lane, []).append((before, after))


def calibration(job: Job, batches: Batches, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The first training inputs in batches, as arrays by the names of an ONNX file."""
    count = min(_CALIBRATION, len(job.data.train))
    for indices in spans(count, job.recipe.data.batch):
        yield arrays_of(job, batches.of(job.data.train, indices), names)
