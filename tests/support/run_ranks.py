"""``torchrun run_ranks.py RECIPE FOLDER``: a run of several processes."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from opdf_compile.distill.recipe import prepare, read_recipe
from opdf_compile.distill.run import run

if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe = Path(sys.argv[1])
    run(prepare(read_recipe(recipe), base=recipe.parent), sys.argv[2])
