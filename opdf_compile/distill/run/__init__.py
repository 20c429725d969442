"""A training run: the loop on Accelerate, its folder, and what comes out of it."""

from __future__ import annotations

from opdf_compile.distill.run.events import (
    Event,
    Finished,
    Saved,
    Stage,
    Started,
    Stepped,
    Validated,
    Watch,
)
from opdf_compile.distill.run.running import RunResult, run

__all__ = [
    "Event",
    "Finished",
    "RunResult",
    "Saved",
    "Stage",
    "Started",
    "Stepped",
    "Validated",
    "Watch",
    "run",
]
