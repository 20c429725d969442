"""Which examples a run learns from and which it is scored on.

A choice of settings fits the examples it was made on a little. So the final comparison is scored on
examples that no tuning run was scored on:

- Where the validation part is a random share of one set of examples, each final seed draws a part
  of the same size from the training part, and gives the old validation part back for training.
- Where the user gave a validation part of its own, one half of it scores the tuning and the other
  half the final comparison: parts of different origin are not mixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

import torch
from torch import Tensor

from opdf_compile.distill.recipe.job import Batch, Data, Job
from opdf_compile.errors import InputError

_MIXABLE = {"digits", "mnist1d"}
_ONE_FILE = {".npz", ".safetensors"}
# No fold takes more of the training part, however large the validation part is.
_LARGEST_SHARE = 0.25


@dataclass(frozen=True)
class Fold:
    """Indices into the pool: the training part, followed by the validation part.

    Attributes:
        train: ``(t,)`` int64; learned from.
        score: ``(v,)`` int64; scored on.
    """

    train: Tensor
    score: Tensor


class Folds:
    """The folds of a job.

    Attributes:
        mixed: Whether final folds are drawn from the training part.
    """

    def __init__(self, job: Job) -> None:
        """Split the pool.

        Raises:
            InputError: There are fewer than two validation examples.
        """
        self._data: Data = job.data
        self.mixed = is_one_set(job)
        self._train = torch.arange(len(self._data.train))
        held = len(self._data.validation)
        if held < 2:
            raise InputError(
                f"the validation part of {self._data.source or 'the data'} has {held} examples, "
                "wanted at least 2; advise compares methods on it: raise validation_share"
            )
        order = torch.randperm(held, generator=torch.Generator().manual_seed(0))
        self._validation = len(self._train) + order

    @property
    def size(self) -> int:
        """Examples in the pool."""
        return len(self._train) + len(self._validation)

    def example(self, index: int) -> Batch:
        """An example of the pool."""
        count = len(self._train)
        if index < count:
            return self._data.train[index]
        return self._data.validation[index - count]

    def tuning(self) -> Fold:
        """What every tuning run learns from and is scored on."""
        if self.mixed:
            return Fold(self._train, self._validation)
        return Fold(self._train, self._validation[: len(self._validation) // 2])

    def final(self, seed: int) -> Fold:
        """What both runs of a final seed learn from and are scored on."""
        if not self.mixed:
            return Fold(self._train, self._validation[len(self._validation) // 2 :])
        count = len(self._train)
        size = max(1, min(len(self._validation), int(_LARGEST_SHARE * count)))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        return Fold(torch.cat([order[size:], self._validation]), order[:size])


def is_one_set(job: Job) -> bool:
    """Whether the recipe's validation part is a random share of the set it trains on."""
    section = job.recipe.data
    if section.validation is not None:
        return False
    return section.source in _MIXABLE or PurePath(section.source).suffix in _ONE_FILE
