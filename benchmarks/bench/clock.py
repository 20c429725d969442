"""A clock for work on a device, and how often to repeat what is short.

Nothing here imports opdf_compile: the steps of another build are timed with this clock, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

# What is short is repeated until this long has passed: one bad moment then counts little.
_LEAST_SECONDS = 0.02
_MOST_REPEATS = 100


@dataclass(frozen=True)
class Clock:
    """A clock that waits for a device.

    Attributes:
        device: Where the work is done.
        kind: "wall", or "cpu" for the processor time of this process. The latter leaves out what
            other processes take, which on a busy machine is the only way to a figure; it is
            honest with one thread, because threads that wait for each other burn it.
    """

    device: torch.device
    kind: Literal["wall", "cpu"] = "wall"

    def now(self) -> float:
        """Seconds, with the device's work done."""
        synchronise(self.device)
        return time.process_time() if self.kind == "cpu" else time.perf_counter()

    def mark(self) -> Any:
        """A moment within a run, for `between`; taken without waiting, which would slow a GPU."""
        if self.device.type != "cuda":
            return self.now()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, first: Any, last: Any) -> float:
        """Seconds from one mark to another; `now` must have been asked since."""
        if self.device.type != "cuda":
            return float(last - first)
        return float(first.elapsed_time(last)) * 1e-3


def timed(run: Callable[[], object], clock: Clock) -> float:
    """Seconds that a call takes, or says that it took."""
    begin = clock.now()
    own = run()
    return own if isinstance(own, float) else clock.now() - begin


def repeats(single: float) -> int:
    """How often to repeat what takes so many seconds."""
    return max(1, min(_MOST_REPEATS, round(_LEAST_SECONDS / max(single, 1e-9))))


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
