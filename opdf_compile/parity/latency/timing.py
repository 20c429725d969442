"""Warms bound sessions up, and times blocks of runs."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

from opdf_compile.parity.runtime.protocol import BoundModel

try:
    import resource
except ImportError:  # Windows: nobody counts preemptions, and the trimmed mean must do.
    resource = None  # type: ignore[assignment]

# One run is a block, unless it is so short that the clock and the loop around it would show. Short
# blocks bring the two runs of a pair close together in time, so that both meet the same machine.
# Measured on a shared core with a run of 0.06 ms: the standard error after one second was 0.1 % for
# blocks of one run and 1.0 % for blocks of twelve.
BLOCK_SECONDS = 0.00005
MOST_RUNS = 2000
# A run of this length fills the caches by itself; before a shorter one they still hold the session
# that ran before.
_FILLS_CACHES = 0.001
# A block is measured again while other processes take the core from it, as long as that is cheap.
_MOST_TRIES = 8
_SECONDS_FOR_TRIES = 0.05
# Warm-up: windows of runs until the median stops falling by more than 1 %.
_WINDOW_SECONDS = 0.01
_STILL_FALLING = 0.99
_MOST_WINDOWS = 20


def warm_up(session: BoundModel) -> float:
    """Run until the median stops falling.

    Returns:
        Seconds per run of the last window.
    """
    single = min(session.seconds(1) for _ in range(2))
    window = max(3, min(MOST_RUNS, round(_WINDOW_SECONDS / max(single, 1e-9))))
    before = _window_median(session, window)
    for _ in range(_MOST_WINDOWS):
        now = _window_median(session, window)
        if now >= before * _STILL_FALLING:
            return now
        before = now
    return before


def runs_per_block(seconds: float) -> int:
    """How many runs of so many seconds make one block long enough for the clock."""
    return max(1, min(MOST_RUNS, round(BLOCK_SECONDS / max(seconds, 1e-9))))


def calm_seconds(session: BoundModel, runs: int, single: float) -> float:
    """Seconds per run of a block during which the system gave the core to nobody else.

    A block that was interrupted timed another process as well, and is measured again. Both sides of
    a ratio are treated alike. On a machine where calm blocks are rare the last one counts.
    `single` is about what one run takes, in seconds.
    """
    if single < _FILLS_CACHES:
        session.run()
    tries = int(_SECONDS_FOR_TRIES / max(single * runs, 1e-9))
    for _ in range(max(1, min(_MOST_TRIES, tries))):
        before = _preemptions()
        seconds = session.seconds(runs)
        if _preemptions() == before:
            break
    return seconds


def _preemptions() -> int:
    """How often the system took a core from this process, over all its threads."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep Python's garbage collector out of the measurement."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _window_median(session: BoundModel, runs: int) -> float:
    return statistics.median(session.seconds(1) for _ in range(runs))
