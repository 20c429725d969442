"""A run that is killed again and again: what has a visible name is whole, and the run goes on."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoint_runs as runs
import pytest

import opdf_compile as opdf
from opdf_compile.io.checkpoints.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

# After a run's first step; a save takes 10 to 50 ms, a step a few; on a busy machine 5 times that.
SPREAD = 0.2
DOUBLINGS = 5


def kill(server: Any, folder: Path, after: float, *, in_place: bool = False) -> bool:
    """Let the run go on for a while and kill it; whether that was in the middle of a save."""
    before = set(unfinished(folder))
    ended = server.run(task="forever", folder=str(folder), kill_after=after, in_place=in_place)
    assert ended == [-signal.SIGKILL]
    return bool(set(unfinished(folder)) - before)


def kills_of(server: Any, folder: Path, *, in_place: bool = False) -> Iterator[bool]:
    """Kill at random moments, within twice the time where no save was hit or none was whole."""
    delays = random.Random(0)
    misses = 0
    while True:
        after = delays.uniform(0, SPREAD * 2 ** min(misses, DOUBLINGS))
        hit = kill(server, folder, after, in_place=in_place)
        misses = 0 if hit and any(folder.glob("step-*")) else misses + 1
        yield hit


def unfinished(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".step-*")]


def broken(folder: Path) -> str | None:
    """What is wrong with the first checkpoint that is not what was saved, or None."""
    for path in sorted(folder.glob("step-*")):
        model, optimizer = runs.build()
        try:
            found = load_checkpoint(path, optimizer)
        except opdf.OpdfError as error:
            return str(error)
        if found.extra["digest"] != runs.digest(model, optimizer):
            return f"{path} loads as something else than was saved"
    return None


def is_pruned(before: set[Path], after: set[Path]) -> bool:
    """Whether a run that keeps two left as few as it can."""
    # One may be about to go. A run that is killed between its first checkpoint and the deletion of
    # older ones adds one to what it found, and the next such run adds another.
    added = len(after - before)
    return len(after) <= max(3, len(before) + added if added < 2 else 0)


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills: int, tmp_path: Path, server: Any) -> None:
    folder = tmp_path / "run"
    killed = kills_of(server, folder)
    inside = 0
    for _ in range(kills):
        before = set(folder.glob("step-*"))
        inside += next(killed)
        assert broken(folder) is None
        assert is_pruned(before, set(folder.glob("step-*")))
    # Otherwise the kills hit the steps between the saves, and nothing was tested.
    assert inside >= kills // 4

    newest = latest_checkpoint(folder)
    assert newest is not None
    model, optimizer = runs.build()
    step = load_checkpoint(newest, optimizer).step
    save_checkpoint(folder, optimizer, step=step + 1, keep=1)
    assert unfinished(folder) == [] and len(list(folder.glob("step-*"))) == 1
    # All those resumed pieces make the run that was never killed.
    again, uninterrupted = runs.build()
    for _ in range(step):
        runs.one_step(again, uninterrupted)
    assert runs.digest(again, uninterrupted) == runs.digest(model, optimizer)


def test_the_check_finds_a_writer_that_is_not_atomic(tmp_path: Path, server: Any) -> None:
    folder = tmp_path / "run"
    killed = kills_of(server, folder, in_place=True)
    for _ in range(40):
        next(killed)
        found = broken(folder)
        if found is not None:
            break
    assert found is not None and "holds no manifest.json" in found


def test_the_check_finds_a_checkpoint_that_holds_something_else(tmp_path: Path) -> None:
    _, optimizer = runs.build()
    save_checkpoint(tmp_path, optimizer, step=1, extra={"digest": "of another state"})
    assert "loads as something else" in str(broken(tmp_path))
