"""Two forms of one program: inline (`Expanded`) and hoisted (`WeightProgram`, `Overparam`)."""

from __future__ import annotations

from opdf_compile.training.expanded import Expanded
from opdf_compile.training.expanding import expand
from opdf_compile.training.folding import fold
from opdf_compile.training.hoisting import hoist
from opdf_compile.training.overparam import Overparam, overparam_class
from opdf_compile.training.program import WeightProgram

__all__ = ["Expanded", "Overparam", "WeightProgram", "expand", "fold", "hoist", "overparam_class"]
