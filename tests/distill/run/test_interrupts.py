"""Signals during training; `test_resume.py` has the run that one ends."""

from __future__ import annotations

import signal
import threading

import pytest

from opdf_compile.distill.run import interrupts


class _Interrupted(threading.Event):
    """A second signal comes while the first is noted."""

    def set(self) -> None:
        signal.raise_signal(signal.SIGINT)
        super().set()


def test_a_second_signal_acts_as_before_from_the_first_ones_handler_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading, "Event", _Interrupted)
    # A shell lets its background jobs ignore SIGINT.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.stoppable():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, former)
