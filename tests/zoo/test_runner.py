"""A model that crashes, hangs or eats the memory is one row; the others go on."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import psutil
import pytest
from zoo.runner import Limits, run
from zoo_targets import obey

LIMITS = Limits(seconds=60.0, mib=400.0)


def rows(*names: str, limits: Limits = LIMITS, jobs: int = 2, **options: Any) -> dict[str, Any]:
    found = list(run(names, lambda name: options, jobs=jobs, limits=limits, target=obey))
    assert sorted(row["name"] for row in found) == sorted(names)
    return {row["name"]: row for row in found}


def test_a_crash_does_not_stop_the_others():
    found = rows("zoo/silent", "zoo/crash", "zoo/good", cores=2)
    assert found["zoo/good"]["status"] == "passed"
    assert found["zoo/good"]["got"] == {"cores": 2}
    assert found["zoo/silent"]["reason"] == "the process died with exit code 9"
    assert found["zoo/silent"]["step"] == "start"
    crash = found["zoo/crash"]
    assert crash["status"] == "failed" and crash["reason"].endswith("exit code -6")
    # What was known before the crash is kept.
    assert crash["step"] == "trace" and crash["seconds"] == {"build": 0.5}


def test_time_is_bounded():
    found = rows("zoo/slow", "zoo/good", limits=Limits(seconds=2.0, mib=400.0))
    assert found["zoo/good"]["status"] == "passed"
    assert found["zoo/slow"]["reason"] == "killed: it took more than 2 seconds"
    assert not _children()


@pytest.mark.parametrize("name", ["zoo/large", "zoo/child"])
def test_memory_is_bounded_with_that_of_child_processes(name: str):
    found = rows(name, "zoo/good", mib=600)
    assert found["zoo/good"]["status"] == "passed"
    reason = found[name]["reason"]
    assert reason.startswith("killed: it used") and reason.endswith("MiB, 400 are allowed")
    assert found[name]["peak_mib"] > 400
    assert not _children()


def test_memory_within_the_bound_is_not_killed():
    found = rows("zoo/large", limits=Limits(seconds=3.0, mib=900.0), mib=300)
    assert "seconds" in found["zoo/large"]["reason"]
    assert 300 < found["zoo/large"]["peak_mib"] < 900


def test_a_run_that_is_left_kills_what_it_started():
    left = run(["zoo/good", "zoo/slow"], lambda name: {}, jobs=2, limits=LIMITS, target=obey)
    assert next(left)["name"] == "zoo/good"
    assert _children()
    assert isinstance(left, Generator)
    left.close()
    assert not _children()


def _children() -> list[psutil.Process]:
    """Processes below this one that hold a bound's worth of work: workers, not the fork server."""
    marks = ("forkserver", "resource_tracker")
    mine = psutil.Process(os.getpid()).children(recursive=True)
    servers = [p for p in mine if any(mark in " ".join(p.cmdline()) for mark in marks)]
    below = {child.pid for server in servers for child in server.children(recursive=True)}
    return [p for p in mine if p.pid in below and p.status() != psutil.STATUS_ZOMBIE]
