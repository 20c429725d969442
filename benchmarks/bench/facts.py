"""Small facts about this process and this day; every worker waits for this import."""

from __future__ import annotations

import resource
import sys
from datetime import UTC, datetime


def peak_mib() -> float:
    """The largest resident size that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def date_of_today() -> str:
    """The day on which something is measured, such as "2026-11-29"."""
    return datetime.now(UTC).date().isoformat()
