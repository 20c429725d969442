"""The teacher's outputs on a batch: computed now, or read from the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from opdf_compile.distill.losses.weighted import WeightedSum
from opdf_compile.distill.recipe.job import Batch, Job

Outputs = Mapping[str, Tensor]


class Rows(Protocol):
    """What a cache holds of one part of the data."""

    def rows(self, indices: list[int]) -> dict[str, Tensor]:
        """The outputs of these examples, in this order."""
        ...


class Teaching:
    """Gives the teacher's outputs.

    Args:
        job: Knows the forward.
        teacher: On the device; None gives None.
        autocast: The precision that it runs in.
        cached: What is on the disk, by part of the data.
        device: Where outputs go.
    """

    def __init__(
        self,
        job: Job,
        teacher: nn.Module | None,
        autocast: Callable[[], AbstractContextManager[object]],
        device: torch.device,
        cached: Mapping[str, Rows] | None = None,
    ) -> None:
        self._job, self._teacher = job, teacher
        self._autocast, self._device = autocast, device
        self._cached = dict(cached or {})

    def __call__(self, part: str, indices: list[int], batch: Batch) -> Outputs | None:
        """The outputs by name, without a graph.

        Args:
            part: "train", "validation" or "test".
            indices: The examples of the batch.
            batch: On the device.
        """
        if self._teacher is None:
            return None
        if part in self._cached:
            rows = self._cached[part].rows(indices)
            return {name: tensor.to(self._device) for name, tensor in rows.items()}
        with torch.no_grad(), self._autocast():
            return self._job.forward(self._teacher, batch)


class _Noting(Mapping[str, Tensor]):
    """A mapping that notes which of its entries are read."""

    def __init__(self, values: Outputs) -> None:
        self._values, self.read = dict(values), set[str]()

    def __getitem__(self, name: str) -> Tensor:
        value = self._values[name]
        self.read.add(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values


@torch.no_grad()
def names_read(
    job: Job, student: nn.Module, teacher: nn.Module | None, losses: WeightedSum, batch: Batch
) -> set[str]:
    """Which of the teacher's outputs the losses and the metric read; a cache needs no others."""
    noting = _Noting({} if teacher is None else job.forward(teacher, batch))
    outputs = job.forward(student, batch)
    losses.pieces(outputs, noting, batch)
    if job.metric.needs_teacher:
        job.metric.pieces(outputs, noting, batch)
    return noting.read
