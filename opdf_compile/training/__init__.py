"""Public expand and fold, and the module that is trained in between."""

from __future__ import annotations

from opdf_compile.training.expanded import Expanded
from opdf_compile.training.expanding import expand
from opdf_compile.training.folding import fold

__all__ = ["Expanded", "expand", "fold"]
