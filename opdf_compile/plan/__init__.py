"""Plan and cost model: which weight gets which parametrization, at which exact cost."""

from __future__ import annotations

from opdf_compile.plan.choose import plan
from opdf_compile.plan.value import Plan, PlanEntry

__all__ = ["Plan", "PlanEntry", "plan"]
