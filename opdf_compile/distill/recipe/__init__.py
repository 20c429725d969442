"""Recipes: one TOML file that says how a student is distilled, and what a run needs of it.

recipe = read_recipe(Path("digits.toml"))      # checked; every error names the line
job = prepare(recipe, base=recipe_folder)      # student, teacher, data, losses, optimizer
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
