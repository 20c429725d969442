"""From a checked recipe to a `Job`."""

from __future__ import annotations

import os
from pathlib import Path

from opdf_compile.distill.recipe.job import Job
from opdf_compile.distill.recipe.schema import Recipe


def prepare(recipe: Recipe, *, base: str | os.PathLike[str] = ".") -> Job:
    """Load student, teacher and data, and check that they fit the recipe and one another.

    Args:
        recipe: As `read_recipe` gave it.
        base: The folder that its relative paths start from: the recipe's own.

    Raises:
        UserError: Something cannot be loaded, or does not fit.
    """
    raise NotImplementedError(Path(base))
