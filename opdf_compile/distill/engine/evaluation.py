"""A metric over a part of the data, shared out over the processes.

Every batch gives a sum and a count. They are added in the order of the batches, not of the
processes, so that the value is the same on any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.distill.engine.batches import Batches, spans
from opdf_compile.distill.recipe import Batch, Examples, Job, Metric
from opdf_compile.graph import phase_flags
from opdf_compile.io import RankGroup

_Forward = Callable[[Batch], dict[str, Tensor]]
_Teach = Callable[[str, list[int], Batch], Any]


class Evaluation:
    """Measures models on one part.

    Args:
        job: Has the metric.
        batches: Makes batches.
        teacher: Gives the teacher's outputs where the metric reads them.
        batch: Examples per forward; None takes the recipe's.
        metric: In place of the recipe's.
    """

    def __init__(
        self,
        job: Job,
        batches: Batches,
        teacher: _Teach,
        batch: int | None = None,
        metric: Metric | None = None,
    ) -> None:
        self._job, self._batches, self._teacher = job, batches, teacher
        self._batch = batch or job.recipe.data.batch
        self._metric = metric or job.metric

    def of(self, model: nn.Module, part: str, *, alone: bool = False) -> float:
        """The metric of a model in eval mode; see `__call__`."""
        with phase_flags(model, "eval"):
            return self(lambda batch: self._job.forward(model, batch), part, alone=alone)

    @torch.no_grad()
    def __call__(self, forward: _Forward, part: str, *, alone: bool = False) -> float:
        """The metric of a model on a part; NaN where the part is empty.

        Args:
            forward: The model's outputs on a batch.
            part: "train", "validation" or "test".
            alone: Measure all of it in this process; the others need not call it.
        """
        examples: Examples = getattr(self._batches.data, part)
        ranks = RankGroup()
        rank, size = (0, 1) if alone else (ranks.rank, ranks.size)
        own: dict[int, tuple[float, float]] = {}
        for place, indices in enumerate(spans(len(examples), self._batch)):
            if place % size == rank:
                own[place] = self._piece(forward, part, examples, indices)
        together = {
            k: v for found in ([own] if alone else ranks.gather(own)) for k, v in found.items()
        }
        pieces = [together[place] for place in sorted(together)]
        count = sum(count for _, count in pieces)
        if not count:
            return math.nan
        return self._metric.of_mean(sum(total for total, _ in pieces) / count)

    def _piece(
        self, forward: _Forward, part: str, examples: Examples, indices: list[int]
    ) -> tuple[float, float]:
        batch = self._batches.of(examples, indices)
        metric = self._metric
        teacher = self._teacher(part, indices, batch) if metric.needs_teacher else None
        total, count = metric.pieces(forward(batch), teacher, batch)
        return float(total), float(count)
