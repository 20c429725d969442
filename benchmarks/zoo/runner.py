"""Runs architectures in processes of their own, each within a bound on memory and on time."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
from bench.facts import date_of_today

from zoo.worker import Row, work

_PAUSE = 0.1
# A process that was killed by the system leaves no row; one step further it may have.
_GRACE = 10.0
Target = Callable[[str, Mapping[str, Any], str], None]


@dataclass(frozen=True)
class Limits:
    """What one architecture may use.

    Attributes:
        seconds: Wall time.
        mib: Resident memory of its process and of those that it starts.
    """

    seconds: float = 180.0
    mib: float = 6144.0


@dataclass
class Running:
    """One process at work.

    Attributes:
        name: The architecture.
        process: Its process.
        file: Where its row is kept.
        started: When it was started.
        verdict: Why it was killed, if it was.
        peak: The largest resident size seen, in MiB.
    """

    name: str
    process: BaseProcess
    file: Path
    started: float = field(default_factory=time.monotonic)
    verdict: str | None = None
    peak: float = 0.0

    def watch(self, limits: Limits) -> bool:
        """Kill the process if it is over a limit; say whether it is still at work."""
        if not self.process.is_alive():
            return False
        self.peak = max(self.peak, resident_mib(self.process.pid))
        if self.peak > limits.mib:
            self.verdict = f"killed: it used {self.peak:.0f} MiB, {limits.mib:.0f} are allowed"
        elif time.monotonic() - self.started > limits.seconds:
            self.verdict = f"killed: it took more than {limits.seconds:g} seconds"
        if self.verdict is None:
            return True
        kill(self.process)
        return False

    def row(self) -> Row:
        """What the process left, completed by how it ended."""
        self.process.join(_GRACE)
        row = read(self.file) or empty_row(self.name)
        code = self.process.exitcode
        if row["status"] == "running":
            died = f"the process died with exit code {code}"
            row.update(status="failed", reason=self.verdict or died)
        row["peak_mib"] = max(row["peak_mib"] or 0.0, round(self.peak, 1))
        row["total_seconds"] = round(time.monotonic() - self.started, 2)
        return row


def run(
    names: Sequence[str],
    options: Callable[[str], Mapping[str, Any]],
    *,
    jobs: int = 1,
    limits: Limits | None = None,
    target: Target = work,
) -> Iterator[Row]:
    """Run architectures, some at a time; rows come in the order in which they end.

    Args:
        names: The architectures.
        options: Arguments of `travel` for each of them.
        jobs: How many processes at a time.
        limits: Of each of them.
        target: What a process does.

    Yields:
        One row for each name, whatever became of its process.
    """
    context = multiprocessing.get_context("forkserver")
    if target is work:
        context.set_forkserver_preload(["zoo.preload"])
    waiting = list(reversed(names))
    running: list[Running] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(context, waiting.pop(), options, folder, target))
                time.sleep(_PAUSE)
                ended = [one for one in running if not one.watch(limits or Limits())]
                running = [one for one in running if one not in ended]
                yield from (one.row() for one in ended)
        finally:
            for one in running:
                kill(one.process)


def _start(
    context: Any,
    name: str,
    options: Callable[[str], Mapping[str, Any]],
    folder: str,
    target: Target,
) -> Running:
    file = Path(folder) / f"{name.replace('/', '-')}.json"
    process = context.Process(target=target, args=(name, dict(options(name)), str(file)))
    process.start()
    return Running(name, process, file)


def read(file: Path) -> Row | None:
    """A row from its file, or None if there is none."""
    if not file.exists():
        return None
    row: Row = json.loads(file.read_text(encoding="utf-8"))
    return row


def empty_row(name: str) -> Row:
    """The row of an architecture whose process wrote nothing."""
    return {
        "name": name,
        "library": name.partition("/")[0],
        "status": "running",
        "reason": None,
        "step": "start",
        "reached": None,
        "date": date_of_today(),
        "export_asked": False,
        "seconds": {},
        "processor_seconds": 0.0,
        "peak_mib": None,
    }


def resident_mib(pid: int | None) -> float:
    """Resident memory of a process and its children; 0 for one that is gone."""
    total = 0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.Error:
        return total / 2**20
    return total / 2**20


def kill(process: BaseProcess) -> None:
    """End a process and those that it started."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        below = []
    process.kill()
    for one in below:
        one.kill()
    process.join(_GRACE)
