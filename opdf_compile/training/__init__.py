"""Two forms of one program: inline (`Expanded`) and hoisted (`WeightProgram`, `Overparam`)."""

from __future__ import annotations

from opdf_compile.training.folding import fold
from opdf_compile.training.hoisted.hoisting import hoist
from opdf_compile.training.hoisted.program import WeightProgram
from opdf_compile.training.inline.expanded import Expanded
from opdf_compile.training.inline.expanding import expand
from opdf_compile.training.optimizer.overparam import Overparam, overparam_class

__all__ = ["Expanded", "Overparam", "WeightProgram", "expand", "fold", "hoist", "overparam_class"]
