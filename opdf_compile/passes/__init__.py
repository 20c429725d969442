"""Graphs in, graphs out: the pass contract, expand, hoist, fold and check."""

from __future__ import annotations

from opdf_compile.passes.base import Change, GraphPass, PassResult, Pipeline
from opdf_compile.passes.check import CheckShapes
from opdf_compile.passes.expand import Expand
from opdf_compile.passes.fold import Fold
from opdf_compile.passes.hoist import Hoist, HoistResult

__all__ = [
    "Change",
    "CheckShapes",
    "Expand",
    "Fold",
    "GraphPass",
    "Hoist",
    "HoistResult",
    "PassResult",
    "Pipeline",
]
