"""Input columns in another dtype than the student computes in, as scikit-learn and numpy give them.

A forward that takes the columns as they are gets them so (token ids stay integers). Where it does
not, floating-point inputs are given in the dtype of its parameters; where that is not enough, whole
numbers and truth values as well. The first that the forward takes is kept, for all batches of the
run, and said once. Labels and all other columns are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from opdf_compile.distill.recipe.examples import DATA_PARTS, Table
from opdf_compile.distill.recipe.job import Batch, Data
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.errors import RecipeError
from opdf_compile.graph import phase_flags

Collate = Callable[[Sequence[Batch]], dict[str, Tensor]]


@dataclass(frozen=True)
class Cast:
    """Makes batches, with some columns in another dtype.

    Attributes:
        collate: Makes the batch.
        names: The columns to cast.
        dtype: To what.
    """

    collate: Collate
    names: tuple[str, ...]
    dtype: torch.dtype

    def __call__(self, rows: Sequence[Batch]) -> dict[str, Tensor]:
        """One batch of rows."""
        batch = self.collate(rows)
        return batch | {name: batch[name].to(self.dtype) for name in self.names}


def fitting(
    recipe: Recipe, data: Data, student: nn.Module, rows: Sequence[Batch]
) -> tuple[Data, tuple[str, ...]]:
    """The data as the student takes it, and what was cast, in sentences.

    What it takes in no dtype is rejected for another reason; that is told where it is used, and
    reads best in the dtype of the student's own numbers.

    Raises:
        RecipeError: A number is too large for the student's dtype.
    """
    batch = data.collate(rows)
    dtype = float_dtype(student)
    other = [name for name in data.inputs if batch[name].dtype != dtype]
    if not other or _takes(student, data, batch):
        return data, ()
    floating = tuple(name for name in other if batch[name].is_floating_point())
    ways = [replace(data, collate=Cast(data.collate, n, dtype)) for n in (floating, tuple(other))]
    for names, cast in zip((floating, tuple(other)), ways, strict=True):
        if names and _takes(student, cast, cast.collate(rows)):
            _require_room(recipe, data, names, dtype)
            return cast, tuple(_note(name, batch[name].dtype, dtype) for name in names)
    return ways[0], ()


def float_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of the first floating-point parameter."""
    found = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(found, torch.float32)


def _takes(student: nn.Module, data: Data, batch: Mapping[str, Tensor]) -> bool:
    """Whether the forward runs; its modes and the caller's random numbers are as before."""
    args, kwargs = data.arguments(batch)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), phase_flags(student, "eval"):
            student(*args, **kwargs)
    except Exception:  # A forward is the user's code; the caller runs it again and says why.
        return False
    return True


def _require_room(recipe: Recipe, data: Data, names: tuple[str, ...], dtype: torch.dtype) -> None:
    """Refuse numbers that become infinite; only examples in memory are looked at."""
    tables = [
        part for part in (getattr(data, name) for name in DATA_PARTS) if isinstance(part, Table)
    ]
    for name in names:
        for column in (part.columns[name] for part in tables if len(part)):
            lost = torch.isfinite(column) & ~torch.isfinite(column.to(dtype))
            if lost.any():
                raise RecipeError(
                    f"{recipe.place('data', 'source')}: column {name} is {_text(column.dtype)} and "
                    f"holds {float(column[lost][0]):.3g}, which is too large for the student's "
                    f"{_text(dtype)}, wanted smaller numbers; scale the column, or build the "
                    "student in float64"
                )


def _note(name: str, found: torch.dtype, wanted: torch.dtype) -> str:
    scaled = "" if found.is_floating_point else " as they are, not scaled"
    return (
        f"column {name} is {_text(found)} and the student computes in {_text(wanted)}: its numbers "
        f"are converted{scaled}"
    )


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
