"""Which examples a run learns from and which it is scored on.

A choice of settings fits the examples it was made on a little. So the final comparison is scored on
examples that no tuning run was scored on:

- Where the validation part is a random share of one set of examples, final runs are scored on parts
  of the training part, which they do not learn from; they learn from the old validation part too.
- Where the user gave a validation part of its own, one half of it scores the tuning and the other
  half the final comparison: parts of different origin are not mixed.

Each pair of final runs has examples of its own to score: no example is scored by two pairs. If all
pairs scored the same examples, the spread over pairs would not hold the chance that lies in these
examples, and chance would be shown as a difference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePath

import torch
from torch import Tensor

from opdf_compile.distill.recipe import Chained, Chosen, Job
from opdf_compile.errors import InputError

_MIXABLE = {"digits", "mnist1d"}
_ONE_FILE = {".npz", ".safetensors"}
# No holdout takes more of the training part, however large the validation part is.
_LARGEST_SHARE = 0.25
# Two to tune on, and two pairs with an example each.
_FEWEST_HELD = 4


@dataclass(frozen=True)
class Holdout:
    """Indices into the pool: the training part, followed by the validation part.

    Attributes:
        train: ``(t,)`` int64; learned from.
        score: ``(v,)`` int64; scored on.
    """

    train: Tensor
    score: Tensor


class Holdouts:
    """What the runs of a job learn from and are scored on.

    Attributes:
        mixed: Whether final runs are scored on parts of the training part.
        pool: The training part, followed by the validation part.
    """

    def __init__(self, job: Job) -> None:
        """Split the pool.

        Raises:
            InputError: There are fewer than four validation examples.
        """
        self._job, data = job, job.data
        self.mixed, self.pool = is_one_set(job), Chained(data.train, data.validation)
        self._train = torch.arange(len(data.train))
        held = len(data.validation)
        if held < _FEWEST_HELD:
            raise InputError(
                f"the validation part of {data.source or 'the data'} has {held} examples, "
                f"wanted at least {_FEWEST_HELD}; advise compares methods on it: raise "
                "validation_share"
            )
        order = torch.randperm(held, generator=torch.Generator().manual_seed(0))
        self._validation = len(self._train) + order

    def job(self, holdout: Holdout) -> Job:
        """The job that learns from a holdout's examples and validates on those to score."""
        train, score = (Chosen(self.pool, places) for places in (holdout.train, holdout.score))
        return replace(self._job, data=replace(self._job.data, train=train, validation=score))

    def tuning(self) -> Holdout:
        """What every tuning run learns from and is scored on."""
        if self.mixed:
            return Holdout(self._train, self._validation)
        return Holdout(self._train, self._validation[: len(self._validation) // 2])

    def parts(self, wanted: int) -> int:
        """How many pairs can be scored on examples of their own: as many as wanted, or fewer."""
        return min(wanted, len(self._scored()))

    def size_of(self, parts: int) -> int:
        """Examples that each of so many pairs is scored on."""
        count = len(self._scored())
        if not self.mixed:
            return count // parts
        largest = min(len(self._validation), int(_LARGEST_SHARE * count))
        return max(1, min(largest, count // parts))

    def final(self, place: int, parts: int) -> Holdout:
        """What both runs of a pair learn from and are scored on.

        Args:
            place: The pair's number, below `parts`.
            parts: How many pairs there are, from `self.parts`.
        """
        scored, size = self._scored(), self.size_of(parts)
        start, end = place * size, (place + 1) * size
        if not self.mixed:
            return Holdout(self._train, scored[start:end])
        rest = torch.cat([scored[:start], scored[end:], self._validation])
        return Holdout(rest, scored[start:end])

    def _scored(self) -> Tensor:
        """All that the final comparison may score, shuffled."""
        if not self.mixed:
            return self._validation[len(self._validation) // 2 :]
        return torch.randperm(len(self._train), generator=torch.Generator().manual_seed(1))


def is_one_set(job: Job) -> bool:
    """Whether the recipe's validation part is a random share of the set it trains on."""
    section = job.recipe.data
    if section.validation is not None:
        return False
    return section.source in _MIXABLE or PurePath(section.source).suffix in _ONE_FILE
