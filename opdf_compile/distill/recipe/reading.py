"""From a TOML file to a checked `Recipe`."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from pydantic import ValidationError

from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.errors import RecipeError


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: The first thing that is wrong, with its line.
    """
    file = Path(path)
    return parse_recipe(file.read_text(encoding="utf-8"), name=str(path))


def parse_recipe(text: str, *, name: str = "recipe.toml") -> Recipe:
    """Check a recipe's text.

    Args:
        text: TOML.
        name: The file's name, for messages.

    Raises:
        RecipeError: The first thing that is wrong, with its line.
    """
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise RecipeError(f"{name}: {error}") from error
