"""Traffic: what is counted, and the arithmetic on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ddp
import pytest
import torch
import torch.distributed as dist
from bench.traffic import CountCollectives


def figures(gradients: int, broadcast: int, held: int) -> dict[str, Any]:
    return {
        "gradient_bytes": gradients,
        "broadcast_bytes": broadcast,
        "other_bytes": 0,
        "core_and_state_bytes": held,
        "cores": 5,
        "scale": 3.25,
    }


def test_traffic_by_hand():
    """A student of 100 bytes of gradients, 80 of them of matched weights whose cores have 260."""
    found = {
        "plain": [figures(100, 0, 0)] * 2,
        "inline": [figures(280, 0, 780)] * 2,
        "hoisted": [figures(100, 0, 780)] * 2,
        ddp.SHARED: [figures(100, 80, held) for held in (195, 195, 180, 210)],
    }
    plain, inline, hoisted, shared = ddp.rows_of("m", found)
    assert [row["ratio"] for row in (plain, inline, hoisted)] == pytest.approx([1.0, 2.8, 1.0])
    # An all-reduce moves a tensor twice, a broadcast once: (2 x 100 + 80) / (2 x 100).
    assert shared["ratio"] == pytest.approx(1.4)
    # The fullest rank counts, not the mean.
    assert shared["core_and_state_share"] == pytest.approx(210 / 780)
    assert (hoisted["met"], shared["met"], inline["met"]) == (True, True, None)


@pytest.mark.parametrize(("broadcast", "fullest"), [(101, 195), (80, 215)])
def test_a_missed_target_is_said(broadcast: int, fullest: int):
    found = {
        "plain": [figures(100, 0, 0)],
        "hoisted": [figures(100, 0, 780)],
        ddp.SHARED: [figures(100, broadcast, fullest)],
    }
    assert ddp.rows_of("m", found)[-1]["met"] is False


def test_collectives_are_counted_by_name_and_bytes(tmp_path: Path):
    dist.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with CountCollectives() as counted:
            dist.broadcast(torch.zeros(10), 0)
            dist.broadcast(torch.zeros(5, dtype=torch.float64), 0, async_op=True).wait()
            dist.all_reduce(torch.zeros(3, dtype=torch.int32))
            torch.zeros(1000) + 1  # No collective.
        dist.broadcast(torch.zeros(7), 0)  # Outside the block.
    finally:
        dist.destroy_process_group()
    assert counted.bytes == {"broadcast": 40 + 40, "allreduce": 12}
