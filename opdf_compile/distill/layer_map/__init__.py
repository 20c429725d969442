"""Which teacher weight belongs to which student weight, and starting a student from its teacher.

chosen = every_kth(student, teacher)                  # the rule, by names
chosen = found(opdf.trace(student, (x,)), opdf.trace(teacher, (x,)))   # by role, shape and depth
print(chosen.describe(student, teacher))              # look at it; edit its TOML, or its pairs
print(copy_layers(student, teacher, chosen))          # warm start
"""

from __future__ import annotations

from opdf_compile.distill.layer_map.copying import CopyReport, copy_layers
from opdf_compile.distill.layer_map.finding import found
from opdf_compile.distill.layer_map.rule import every_kth
from opdf_compile.distill.layer_map.value import LayerMap
from opdf_compile.distill.layer_map.weights import main_weights

# Its name in opdf_compile.distill, where "found" alone would say little.
found_map = found

__all__ = [
    "CopyReport",
    "LayerMap",
    "copy_layers",
    "every_kth",
    "found",
    "found_map",
    "main_weights",
]
