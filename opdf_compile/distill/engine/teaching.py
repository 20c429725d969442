"""The teacher's outputs on a batch: computed now, or kept from before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from opdf_compile.distill.engine.machine import Machine
from opdf_compile.distill.engine.pruned import Pruned, mixed
from opdf_compile.distill.engine.setup import Setup
from opdf_compile.distill.recipe import (
    INPUTS,
    Batch,
    Job,
    Outputs,
    with_augmented,
    with_online,
)
from opdf_compile.errors import InputError
from opdf_compile.graph import phase_flags
from opdf_compile.io import fixed_randomness


class Rows(Protocol):
    """What is kept of one part of the data."""

    def rows(self, indices: list[int]) -> dict[str, Tensor]:
        """The outputs of these examples, in this order."""
        ...


class Teaching:
    """Gives the teacher's outputs: those that are kept of a part of the data, or else computed.

    Attributes:
        teacher: As given.
    """

    def __init__(
        self,
        job: Job,
        teacher: nn.Module | None,
        machine: Machine,
        kept: Mapping[str, Rows] | None = None,
    ) -> None:
        self._job, self.teacher, self._machine = job, teacher, machine
        self._kept = dict(kept or {})
        self._copy: tuple[nn.Module, Pruned] | None = None

    def __call__(self, part: str, indices: list[int] | None, batch: Batch) -> Outputs | None:
        """The outputs by name, without a graph; None without a teacher.

        Args:
            part: Of the data.
            indices: Which of its examples the batch is; None where it is something else.
            batch: On the device.
        """
        if indices is not None and part in self._kept:
            rows = self._kept[part].rows(indices)
            if self._job.recipe.language is not None:
                # Kept with rows that were longer than those of this batch.
                rows = {n: rows_[:, : batch[INPUTS[0]].shape[1]] for n, rows_ in rows.items()}
            return {name: tensor.to(self._machine.device) for name, tensor in rows.items()}
        return None if self.teacher is None else self.outputs(self.teacher, batch)

    def both(self, part: str, indices: list[int] | None, batch: Batch) -> Outputs | None:
        """What it says of a batch, and of the second look that the batch has, if one is taken."""
        found = self(part, indices, batch)
        return None if found is None else self.second(found, batch)

    def second(self, found: Outputs, batch: Batch) -> Outputs:
        """Its outputs on a batch with those on the second look beside them; never kept."""
        augmentation, section = self._job.augmentation, self._job.recipe.augment
        if augmentation is None or self.teacher is None or (section and not section.teacher):
            return found
        with augmentation.mixing(batch):
            return with_augmented(found, self.outputs(self.teacher, augmentation.view(batch)))

    @torch.no_grad()
    def outputs(self, teacher: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """What a teacher says now."""
        section, forward = self._job.recipe.teacher, self._job.forward
        with self._machine.autocast():
            found = forward(teacher, batch)
            if section is None or not section.pruned:
                return found
            if self._copy is None or self._copy[0] is not teacher:
                self._copy = teacher, Pruned(teacher, section.pruned)
            return mixed(found, forward(self._copy[1], batch), section.pruned_share)


class Remembered:
    """Outputs in memory.

    Attributes:
        outputs: By name, ``(n, ...)``.
        places: Where in them each example is; None where they are in order.
    """

    def __init__(self, outputs: Outputs, places: Sequence[int] | None = None) -> None:
        self.outputs, self.places = outputs, places

    def rows(self, indices: list[int]) -> dict[str, Tensor]:
        """The outputs of these examples, in this order."""
        found = indices if self.places is None else [self.places[index] for index in indices]
        return {name: tensor[found] for name, tensor in self.outputs.items()}


def joined(pieces: Sequence[Outputs], part: str, *, ragged: bool = False) -> dict[str, Tensor]:
    """The outputs on several batches as one.

    Args:
        pieces: ``(n, ...)`` each.
        part: Of the data, for the sentence.
        ragged: Whether rows of unequal length are filled up with 0: those of tokens that no loss
            counts.

    Raises:
        InputError: Their shapes differ.
    """
    if ragged:
        return {name: _filled_up([piece[name] for piece in pieces]) for name in pieces[0]}
    for name in pieces[0]:
        shapes = {tuple(piece[name].shape[1:]) for piece in pieces}
        if len(shapes) > 1:
            raise InputError(
                f"the teacher's output {name!r} has the shapes {sorted(shapes)} on examples of the "
                f"{part} part, wanted one shape; pad the data to one length, or write [teacher] "
                "cache = false"
            )
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _filled_up(pieces: Sequence[Tensor]) -> Tensor:
    """Pieces ``(n, tokens, ...)`` in a row, each filled up with 0 to the longest."""
    rows = [row for piece in pieces for row in piece]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


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
def names_read(setup: Setup, teacher: nn.Module) -> tuple[str, ...]:
    """Which of the teacher's outputs the losses and the metric read, tried on the job's example."""
    job = setup.job
    batch = setup.looked_at_twice(setup.batches.moved(job.example))
    noting = _Noting(job.forward(teacher, batch))
    eval_student, eval_losses = (phase_flags(m, "eval") for m in (setup.student, setup.losses))
    with fixed_randomness(), eval_student, eval_losses:
        outputs = job.forward(setup.student, batch)
        found: tuple[Outputs, Outputs] = (outputs, noting)
        if job.augmentation is not None:
            view = job.augmentation.view(batch)
            again = job.forward(setup.student, view), job.forward(teacher, view)
            found = with_augmented(outputs, again[0]), with_augmented(noting, again[1])
        if setup.online is not None:
            found = with_online(outputs, noting, job.forward(setup.online, batch))
        setup.losses.pieces(*found, batch)
        if job.metric.needs_teacher:
            job.metric.pieces(outputs, noting, batch)
    return tuple(sorted(noting.read))
