"""Which teacher weight belongs to which student weight, and starting a student from its teacher.

chosen = every_kth(student, teacher)                  # the rule, by names
chosen = found_map(opdf.trace(student, (x,)), opdf.trace(teacher, (x,)))   # by role, shape, depth
print(chosen.describe(student, teacher))              # look at it; edit its TOML, or its pairs
print(copy_layers(student, teacher, chosen))          # warm start
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
