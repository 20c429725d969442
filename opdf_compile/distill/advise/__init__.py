"""Advice: whether over-parameterisation pays for a recipe, found by a race on its own data.

advice = advise(job, budget_seconds=600)
advice.verdict          # "use", "do-not-use", "no-difference" or "undecided"
ruling = referee(job, "gains,muon", budget_seconds=600)
ruling.verdict          # "more-steps", too
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
