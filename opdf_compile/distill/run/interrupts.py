"""Ctrl-C and SIGTERM during training: the step is finished, then the run saves and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that the first signal sets; a second acts as before, so that nobody is held up.

    Only the main thread may handle signals; elsewhere they act as ever.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        # First: noting a second signal within `set` would wait for the lock that `set` holds.
        _put_back(before)
        stop.set()

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        _put_back(before)


def _put_back(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        # None: somebody installed it from C, and only C can put it back.
        if handler is not None:
            signal.signal(number, handler)
