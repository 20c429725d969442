"""Examples from a part of the data, as batches on the device of the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdf_compile.distill.engine.machine import Machine
from opdf_compile.distill.recipe import Batch, Data, Examples, examples_at


@dataclass(frozen=True)
class Batches:
    """Makes batches.

    Attributes:
        data: Knows how to collate.
        machine: Where they go, and in which precision.
    """

    data: Data
    machine: Machine

    def of(self, part: Examples, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of these examples."""
        return self.moved(self.data.collate(examples_at(part, torch.as_tensor(indices))))

    def moved(self, batch: Batch) -> dict[str, Tensor]:
        """A batch on the device."""
        moved = {name: tensor.to(self.machine.device) for name, tensor in batch.items()}
        if not self.machine.double:
            return moved
        return {n: t.double() if t.is_floating_point() else t for n, t in moved.items()}


def spans(examples: int, batch: int) -> Iterator[list[int]]:
    """The indices of a part in order, batch by batch, the last one shorter."""
    for start in range(0, examples, batch):
        yield list(range(start, min(start + batch, examples)))
