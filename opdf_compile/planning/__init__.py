"""Plan and cost model: which weight gets which parametrization, at which exact cost."""

from __future__ import annotations

from opdf_compile.planning.choose import plan
from opdf_compile.planning.value import Plan, PlanEntry

__all__ = ["Plan", "PlanEntry", "plan"]
