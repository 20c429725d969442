"""Which axes of the inputs stay free in the export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from opdf_compile.distill.recipe.job import Data
from opdf_compile.distill.recipe.problems import suggestion
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.errors import RecipeError

Axes = dict[str, tuple[str | int, ...]]


def export_axes(
    recipe: Recipe, data: Data, example: Mapping[str, Tensor], known: Mapping[str, Any] | None
) -> Axes | None:
    """The axes of `[export] axes`, or those of the model's loader where it knows all inputs.

    Returns:
        A letter or number per axis of each input; None leaves the first axis of all free.

    Raises:
        RecipeError: An input is not there, or has another number of axes.
    """
    given = recipe.export.axes
    if given is None:
        named = known is not None and all(name in known for name in data.inputs)
        return {name: known[name] for name in data.inputs} if named and known else None
    made: Axes = {}
    for name, text in given.items():
        place = recipe.place("export", "axes", name)
        if name not in data.inputs:
            raise RecipeError(
                f"{place}: the student has no input {name}, its inputs are "
                f"{', '.join(data.inputs)}{suggestion(name, data.inputs, 'name these')}"
            )
        letters = tuple(int(part) if part.isdigit() else part for part in text.split("x"))
        if len(letters) != example[name].ndim:
            raise RecipeError(
                f'{place}: axes of {name} are "{text}" and its shape is '
                f"{list(example[name].shape)}, wanted {example[name].ndim} letters or numbers with "
                'an x between them, such as "BxS"'
            )
        made[name] = letters
    for name in data.inputs:
        made.setdefault(name, ("B", *example[name].shape[1:]))
    return made
