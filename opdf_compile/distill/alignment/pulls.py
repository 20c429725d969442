"""The terms of the loss over the cores of a weight program, laid out for one pass.

L = sum over terms of  share ||core - target||^2         dL/dcore = 2 share (core - target)

The gradient is written down, so no graph is built and compose is not run. Lists of tensors go
through foreach ops, in pieces, so that the differences never need much memory at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import sqrt

import torch
from torch import Tensor

from opdf_compile.distill.alignment.core_labels import Targets
from opdf_compile.training import Unit

# Entries whose differences are held at once: 64 MiB of float32.
_PIECE = 2**24


@dataclass(frozen=True)
class Pull:
    """One stored core, or one row of a stack, and what it is drawn to.

    Attributes:
        stored: The core, or the stack.
        row: The row; None for all of it.
        target: Of the same shape.
        share: The weight of its squared distance in the loss.
    """

    stored: Tensor
    row: int | None
    target: Tensor
    share: float

    def core(self) -> Tensor:
        """The core's values."""
        return self.stored if self.row is None else self.stored[self.row]

    def grad(self) -> Tensor:
        """Where its gradient is."""
        assert self.stored.grad is not None
        return self.stored.grad if self.row is None else self.stored.grad[self.row]


class Pulls:
    """The terms of a program, as its units were laid out at one time.

    Args:
        units: What is composed here.
        targets: What each core is drawn to; changed to its device.
        count: Aligned weights in all, also those of other ranks.
    """

    def __init__(self, units: Sequence[Unit], targets: Targets, count: int) -> None:
        """Lay the terms out, stacks as a whole where all their rows agree."""
        self._units = units
        found = [term for unit in units for term in _terms(unit, targets, count)]
        # One call of a foreach op takes one factor.
        self.terms = sorted(found, key=lambda term: term.share)

    def fit(self, units: Sequence[Unit]) -> bool:
        """Whether the program still is as it was: no batch taken apart, nothing moved."""
        return self._units is units and all(
            term.target.device == term.stored.device for term in self.terms
        )

    @torch.no_grad()
    def add(self, weight: float) -> Tensor | None:
        """Add weight dL/dcore to the cores that have a gradient.

        Returns:
            L, a scalar; None without terms.
        """
        sums: list[Tensor] = []
        for share, terms in _pieces(self.terms):
            differences = torch._foreach_sub(
                [term.core() for term in terms], [term.target for term in terms]
            )
            norms = torch._foreach_norm(differences)
            torch._foreach_mul_(norms, sqrt(share))
            sums.extend(norms)
            pairs = zip(terms, differences, strict=True)
            moving = [(t.grad(), d) for t, d in pairs if t.stored.grad is not None]
            if moving and weight:
                grads, added = zip(*moving, strict=True)
                torch._foreach_add_(list(grads), list(added), alpha=2 * weight * share)
        return torch.stack(sums).square().sum() if sums else None


def _pieces(terms: Iterable[Pull]) -> Iterator[tuple[float, list[Pull]]]:
    """Terms of one share, not too many entries at once."""
    for share, same in groupby(terms, key=lambda term: term.share):
        piece: list[Pull] = []
        size = 0
        for term in same:
            if piece and size + term.target.numel() > _PIECE:
                yield share, piece
                piece, size = [], 0
            piece.append(term)
            size += term.target.numel()
        yield share, piece


def shares(targets: Mapping[int, Tensor], count: int) -> dict[int, float]:
    """1 / (weights x cores x entries) for each core: L is a mean of means of means."""
    return {k: 1 / (count * len(targets) * target.numel()) for k, target in targets.items()}


def _terms(unit: Unit, targets: Targets, count: int) -> Iterator[Pull]:
    if unit.batched:
        yield from _of_batch(unit, targets, count)
        return
    for bound in unit.weights:
        kept = targets.get(bound.key, {})
        factors = shares(kept, count)
        for k, target in kept.items():
            place = unit.members[0].index(bound.entry.core_names[k])
            core = unit.storage[place]  # It may lie as a matrix.
            yield Pull(core, None, target.reshape(core.shape), factors[k])


def _of_batch(unit: Unit, targets: Targets, count: int) -> Iterator[Pull]:
    for place, stack in enumerate(unit.storage):
        rows: dict[int, tuple[Tensor, float]] = {}
        for row, bound in enumerate(unit.weights):
            k = bound.entry.core_names.index(unit.members[row][place])
            kept = targets.get(bound.key, {})
            if k in kept:
                rows[row] = kept[k], shares(kept, count)[k]
        factors = {share for _target, share in rows.values()}
        if len(rows) == len(unit.weights) and len(factors) == 1:
            yield Pull(stack, None, torch.stack([target for target, _ in rows.values()]), *factors)
        else:
            yield from (Pull(stack, row, target, share) for row, (target, share) in rows.items())
