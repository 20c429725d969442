"""Live bytes from an event list by hand, and from a real recording of tensors of known sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench.allocations import Block, addresses, parse, recording
from torch.profiler import record_function

from opdf_compile.errors import InternalError


def memory(ts: float, addr: int, size: int) -> dict[str, Any]:
    args = {"Addr": addr, "Bytes": size, "Device Type": 0}
    return {"name": "[memory]", "cat": "cpu_instant_event", "ts": ts, "args": args}


def span(name: str, begin: float, end: float) -> dict[str, Any]:
    return {"name": name, "cat": "user_annotation", "ts": begin, "dur": end - begin}


# time     1    2    3    4    5    6    7
# A 100    [-----------------------------     never released
# B  50         [---------)
# C  30                   [---------)         at B's address
# live   100  150  150  130  130  100  100
EVENTS = [
    memory(1, 0xA, 100),
    memory(2, 0xB, 50),
    memory(4, 0xB, -50),
    memory(4, 0xB, 30),
    memory(6, 0xB, -30),
    memory(3, 0xF, -999),  # Released here, allocated before the recording.
    span("all", 0, 10),
    span("early", 0, 1.5),
    span("late", 5, 7),
    span("end", 6.5, 7),
]


@pytest.mark.parametrize(
    ("name", "peak"), [("all", 150), ("early", 100), ("late", 130), ("end", 100)]
)
def test_peaks_by_hand(name: str, peak: int):
    assert parse(EVENTS).peak(name) == peak


def test_blocks_left_out_do_not_count():
    found = parse(EVENTS)
    first = found.holding([0xB], 3.0)
    second = found.holding([0xB], 5.0)
    assert first == {Block(0xB, 50, 2, 4)} and second == {Block(0xB, 30, 4, 6)}
    assert found.peak("all", without=first) == 130
    assert found.peak("all", without=second) == 150
    # Leaving the wrong block out, one that lives at another time, is seen in the figure.
    assert found.peak("late", without=first) == 130
    assert found.peak("late", without=second) == 100


def test_memory_that_was_not_recorded_is_an_error():
    with pytest.raises(InternalError, match="not among the allocations"):
        parse(EVENTS).holding([0xF], 3.0)


def test_a_real_recording():
    """1 MB is kept, 4 MB come and go within the span, 8 MB before it."""
    megabyte = 2**20
    with recording() as read:
        torch.empty(8 * megabyte, dtype=torch.uint8)
        kept = torch.empty(megabyte, dtype=torch.uint8)
        with record_function("span"):
            torch.empty(4 * megabyte, dtype=torch.uint8)
    found = read()
    assert found.peak("span") == pytest.approx(5 * megabyte, rel=0.01)
    begin, _ = found.moments["span"]
    own = found.holding(addresses([kept]), begin)
    assert found.peak("span", without=own) == pytest.approx(4 * megabyte, rel=0.01)


def test_views_share_an_address_and_empty_tensors_have_none():
    base = torch.zeros(4, 4)
    assert addresses([base, base[1:], torch.empty(0)]) == {base.data_ptr()}
