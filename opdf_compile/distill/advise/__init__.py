"""Advice: whether over-parameterisation pays for a recipe, found by a race on its own data.

advice = advise(job, budget_seconds=600)
advice.verdict          # "use", "do-not-use", "no-difference" or "undecided"
"""

from __future__ import annotations

from opdf_compile.distill.advise.racing import advise, require_limits
from opdf_compile.distill.advise.value import Advice

__all__ = ["Advice", "advise", "require_limits"]
