"""Recipes: one TOML file that says how a student is distilled, and what a run needs of it.

recipe = read_recipe(Path("digits.toml"))      # checked; every error names the line
job = prepare(recipe, base=recipe_folder)      # student, teacher, data, losses, optimizer
"""

from __future__ import annotations

from opdf_compile.distill.recipe.job import Data, Job, Metric
from opdf_compile.distill.recipe.preparing import prepare
from opdf_compile.distill.recipe.reading import parse_recipe, read_recipe
from opdf_compile.distill.recipe.schema import Recipe

__all__ = ["Data", "Job", "Metric", "Recipe", "parse_recipe", "prepare", "read_recipe"]
