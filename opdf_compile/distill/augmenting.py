"""A second look at a batch: examples mixed with others of the batch, or with a part of them hidden.

    mixup    x = l x_i + (1 - l) x_j                l ~ Beta(a, a), j a permutation of the batch
    cutmix   a box of x_i is that of x_j            l: the share of x_i that is left
    cutout   a box of x_i, a quarter of each axis, is zero

Whole numbers that look rows of an embedding up (token ids) have no middle: there the rows are
mixed, see `mixed_rows`. Padding masks are joined: what counts in either example counts in the mix.

Sources: Zhang et al. 2017 (mixup), arXiv 1710.09412; Yun et al. 2019 (CutMix), arXiv 1905.04899;
DeVries, Taylor 2017 (Cutout), arXiv 1708.04552; Liang et al. 2020 (MixKD), arXiv 2011.00593; Kim et
al. 2023 (R2KD), arXiv 2311.13934, whose public code has one l and one box for a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from opdf_compile.distill.mixed_rows import Columns, MixedRows, is_mask, looked_up
from opdf_compile.errors import InputError

Kind = Literal["mixup", "cutmix", "cutout"]
# In front of the names of what belongs to the second look: columns of a batch, and outputs.
AUGMENTED = "augmented."
PARTNER, SHARE = f"{AUGMENTED}partner", f"{AUGMENTED}share"
USUAL_ALPHA = {"mixup": 0.2, "cutmix": 1.0, "cutout": 1.0}
_HIDDEN = 4  # A cutout's box is this part of each axis.


@dataclass(frozen=True)
class Augmentation:
    """How the second look is taken.

    Attributes:
        kind: "mixup", "cutmix" or "cutout".
        inputs: The columns that go into the forward.
        looked_up: Those of them that look up rows of an embedding.
        alpha: a of the Beta distribution; None is the usual one.
    """

    kind: Kind
    inputs: tuple[str, ...]
    looked_up: frozenset[str] = frozenset()
    alpha: float | None = None

    def __call__(self, batch: Columns, rng: np.random.Generator) -> dict[str, Tensor]:
        """The batch with the columns of its second look.

        Args:
            batch: Columns ``(b, ..)``.
            rng: What is drawn comes from here: l, the permutation, the box.

        Returns:
            The columns, for each input another one of its shape, and l and j of each row, ``(b,)``.
        """
        first = batch[self.inputs[0]]
        rows = len(first)
        alpha = self.alpha or USUAL_ALPHA[self.kind]
        share = 1.0 if self.kind == "cutout" else float(rng.beta(alpha, alpha))
        places = torch.as_tensor(rng.permutation(rows), device=first.device)
        made: dict[str, Tensor] = {}
        for name in self.inputs:
            column = batch[name]
            if not column.is_floating_point():
                joined = torch.maximum(column, column[places])
                made[name] = column if name in self.looked_up else joined
            elif self.kind == "mixup":
                made[name] = torch.lerp(column[places], column, share)
            else:
                made[name], share = _boxed(column, column[places], share, rng, self.kind)
        shares = torch.full((rows,), share, dtype=torch.float64, device=first.device)
        named = {f"{AUGMENTED}{name}": column for name, column in made.items()}
        return {**batch, **named, PARTNER: places, SHARE: shares}

    def view(self, batch: Columns) -> dict[str, Tensor]:
        """The second look as a batch of its own."""
        return {**batch, **{name: batch[f"{AUGMENTED}{name}"] for name in self.inputs}}

    def mixing(self, batch: Columns) -> contextlib.AbstractContextManager[Any]:
        """The region of a forward on the second look."""
        if not self.looked_up:
            return contextlib.nullcontext()
        seen = self.view(batch)
        columns = {name: seen[name] for name in self.inputs}
        return MixedRows(batch[PARTNER], batch[SHARE], columns)


def _boxed(
    column: Tensor, others: Tensor, share: float, rng: np.random.Generator, kind: Kind
) -> tuple[Tensor, float]:
    """A column with a box of the others, or of zeros; and the share that is the column's own."""
    axes = range(2, column.ndim) if column.ndim > 2 else range(1, column.ndim)
    sizes = [column.shape[axis] for axis in axes]
    if kind == "cutout":
        sides = [max(1, size // _HIDDEN) for size in sizes]
    else:
        ratio = (1 - share) ** (1 / max(1, len(sizes)))
        sides = [int(size * ratio) for size in sizes]
    box: list[slice] = [slice(None)] * column.ndim
    left = 1.0
    for axis, size, side in zip(axes, sizes, sides, strict=True):
        centre = int(rng.integers(size))
        first = centre - side // 2
        start, stop = max(first, 0), min(first + side, size)
        box[axis] = slice(start, stop)
        left *= (stop - start) / size
    found = column.clone()
    found[tuple(box)] = 0 if kind == "cutout" else others[tuple(box)]
    return found, 1.0 if kind == "cutout" else 1.0 - left


def augmentation(
    kind: Kind,
    alpha: float | None,
    forward: Callable[[Columns], Any],
    batch: Columns,
    inputs: tuple[str, ...],
    *,
    teacher: Callable[[Columns], Any] | None = None,
) -> Augmentation:
    """The augmentation of a model's inputs.

    Args:
        kind: "mixup", "cutmix" or "cutout".
        alpha: a of the Beta distribution; None is the usual one.
        forward: Runs the student on a batch.
        batch: An example of two rows or more.
        inputs: The columns that go into the forward.
        teacher: Runs the teacher on a batch, if it says something of the second look.

    Raises:
        InputError: It cannot be done to them: boxes of token ids, or nothing to mix at all.
    """
    whole = [name for name in inputs if not batch[name].is_floating_point()]
    if whole and kind != "mixup":
        raise InputError(
            f"{kind} takes a box out of numbers and {whole[0]} holds whole numbers, wanted images "
            'or signals; write kind = "mixup"'
        )
    found = looked_up(forward, batch, inputs) if whole else frozenset[str]()
    if len(whole) == len(inputs) and not found:
        raise InputError(
            f"the inputs {', '.join(inputs)} are whole numbers that look up no rows of an "
            "embedding, wanted numbers to mix; give the inputs as floating point"
        )
    left = [name for name in whole if name not in found and not is_mask(batch[name])]
    if left:
        raise InputError(
            f"the input {left[0]} holds whole numbers that look up no rows of an embedding, wanted "
            "rows to mix, or a mask of 0 and 1; give it as floating point, or remove [augment]"
        )
    if whole and teacher is not None and (theirs := looked_up(teacher, batch, inputs)) != found:
        raise InputError(
            f"the student looks rows of an embedding up by {_named(found)} and the teacher by "
            f"{_named(theirs)}, wanted the same, so that both see one mix; set teacher = 0 in "
            "[augment], or remove it"
        )
    return Augmentation(kind, inputs, found, alpha)


def _named(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
