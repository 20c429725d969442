"""Small facts about this process."""

from __future__ import annotations

import resource
import sys


def peak_mib() -> float:
    """The largest resident size that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
