"""The training objective over all batches of a step and all processes.

    L = sum over terms of  weight * (sum over examples) / (count over all batches and processes)

Each forward gives a sum and a count for every term. Dividing by the count of the whole step, not by
that of one piece of it, makes the gradient independent of how the step was cut up, also where masks
leave unequal pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from opdf_compile.distill.augmenting import Augmentation
from opdf_compile.distill.losses import Pieces, Term, WeightedSum
from opdf_compile.distill.recipe import Batch, Outputs, with_augmented, with_online


class Objective(nn.Module):
    """Student and losses as one module, so that the gradients of both travel between processes."""

    def __init__(
        self,
        student: nn.Module,
        losses: WeightedSum,
        forward: Callable[[nn.Module, Batch], Outputs],
        online: nn.Module | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__()
        self._augmentation = augmentation
        self.student, self.losses, self.online = student, losses, online
        self._outputs = forward

    def forward(self, batch: Batch, teacher: Outputs | None) -> Pieces:
        """Sum and count of each term, in float32 at least."""
        ours = self._outputs(self.student, batch)
        if self.online is not None and teacher is not None:
            ours, teacher = with_online(ours, teacher, self._outputs(self.online, batch))
        if self._augmentation is not None:
            with self._augmentation.mixing(batch):
                again = self._outputs(self.student, self._augmentation.view(batch))
            ours = with_augmented(ours, again)
        pieces = self.losses.pieces(ours, teacher, batch)
        return {name: (_widened(total), count) for name, (total, count) in pieces.items()}


def _widened(total: Tensor) -> Tensor:
    """Losses of one's own may be computed in the half precision of mixed training."""
    return total.to(torch.promote_types(total.dtype, torch.float32))


class Divisors:
    """The counts of a whole step, known after its first forward.

    A term's count grows with what it measures: the examples, or the rows that its mask and its
    labels let through. The first batch tells how much it counts for each, and the batches
    themselves tell the rest, so that no forward need wait for another's.
    """

    def __init__(self, terms: Mapping[str, Term], add_up: Callable[[Tensor], Tensor]) -> None:
        self._terms, self._add_up = dict(terms), add_up

    def __call__(
        self, pieces: Pieces, batches: Sequence[Batch], stop: bool
    ) -> tuple[dict[str, float], bool]:
        """The divisors of a step, from the pieces of its first batch; all processes together.

        Returns:
            A divisor for each term, and whether any process was told to stop.
        """
        counts = [count.detach().double() for _, count in pieces.values()]
        told = torch.tensor([float(stop)], dtype=torch.float64, device=counts[0].device)
        measured = [[self._terms[name].rows_in(batch) for batch in batches] for name in pieces]
        first = told.new_tensor([of_batches[0] for of_batches in measured])
        whole = told.new_tensor([sum(of_batches) for of_batches in measured])
        # One vector: a step waits for the other processes once.
        added = self._add_up(torch.cat([told, torch.stack(counts), first, whole]))
        count, part, all_ = added[1:].reshape(3, -1).tolist()
        found = zip(pieces, count, part, all_, strict=True)
        return {name: _divisor(*numbers) for name, *numbers in found}, bool(added[0] > 0)


def _divisor(count: float, part: float, whole: float) -> float:
    """The count of the step from that of a part of it; 1 where nothing counts and the sum is 0."""
    if part == whole:  # One batch, as most steps have: its count needs no estimate.
        return count or 1.0
    # Where the first batch has nothing to count, a row is taken to count for one.
    return (count / part if part else 1.0) * whole or 1.0


def weighted(pieces: Pieces, weights: Mapping[str, float], divisors: Mapping[str, float]) -> Tensor:
    """This process's part of the objective; the parts of all processes and batches add up to it."""
    terms = [weights[name] * (total / divisors[name]) for name, (total, _) in pieces.items()]
    return torch.stack(terms).sum()
