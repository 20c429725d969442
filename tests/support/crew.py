"""Crews of processes: ranks that stay up from test to test, so that torch is imported once.

A task is a function of a module beside this one, called on every rank. A rank that raises, or does
not answer in time, fails the test with what it was doing; the crew is killed then, and the next
test starts a new one.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("crew_worker.py")
# Far above what any task takes, far below what CI allows.
TIMEOUT = 120.0
# How long ranks may go on after one of them has failed; mostly they wait for it in a collective.
GRACE = 5.0


class TaskFailed(AssertionError):
    """A rank raised, or did not answer in time."""


class Crew:
    """Processes that are the ranks of one gloo group.

    Args:
        size: Number of ranks.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection] = []

    def run(
        self, module: str, task: str, *, timeout: float = TIMEOUT, **arguments: Any
    ) -> list[Any]:
        """Call `module.task(**arguments)` on every rank; what each returned, in order."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((module, task, arguments, timeout)))
        answers = self._collect(time.monotonic() + timeout)
        problems = [
            f"rank {rank} of {self.size} in {module}.{task}: {answer}"
            for rank, (good, answer) in enumerate(answers)
            if not good
        ]
        if problems:
            self.stop()
            raise TaskFailed("\n".join(problems))
        return [answer for _good, answer in answers]

    def _collect(self, deadline: float) -> list[tuple[bool, Any]]:
        answers: dict[int, tuple[bool, Any]] = {}
        while len(answers) < self.size and time.monotonic() < deadline:
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
            for pipe in wait(waiting, max(deadline - time.monotonic(), 0.0)):
                rank = self._pipes.index(pipe)  # type: ignore[arg-type]
                answers[rank] = _receive(self._pipes[rank])
                if not answers[rank][0]:
                    deadline = min(deadline, time.monotonic() + GRACE)
        silent = (False, "no answer in time; see the captured stderr for where it was")
        return [answers.get(rank, silent) for rank in range(self.size)]

    def _start(self) -> None:
        store = Path(tempfile.mkdtemp()) / "store"
        for rank in range(self.size):
            ours, theirs = Pipe()
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, WORKER, *map(str, (theirs.fileno(), rank, self.size, store))],
                    pass_fds=[theirs.fileno()],
                    env=environment(),
                )
            )
            theirs.close()
            self._pipes.append(ours)

    def stop(self) -> None:
        """Kill every rank."""
        for process in self._processes:
            process.kill()
            process.wait()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []


def _receive(pipe: Connection) -> tuple[bool, Any]:
    try:
        # Not recv(): torch makes that share memory, which outlives no sender.
        answer: tuple[bool, Any] = pickle.loads(pipe.recv_bytes())
    except EOFError:
        return False, "the process ended"
    return answer


def environment() -> dict[str, str]:
    """One thread for each rank, and gloo on the loopback device where it has the usual name."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if Path("/sys/class/net/lo").exists() else {}
    return os.environ | {"OMP_NUM_THREADS": "1"} | loopback
