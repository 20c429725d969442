"""The study: what the store does not have yet, until it has all of it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from quality.second.cost import measured
from quality.second.groups import CostOf, Job, groups_of, left_of
from quality.second.plan import Stage
from quality.second.problem import load
from quality.second.store import Store
from quality.second.tasks import SOURCES, TEXT
from quality.second.textual import beside, load_text
from quality.second.training import AnyProblem, train

# A pool is never handed more than this many jobs for each process, so that it ends soon when told.
_AHEAD = 2
_SAY_EVERY = 15.0


def missing(store: Store, stage: Stage) -> tuple[list[Job], int]:
    """Jobs that a stage needs next and the store has not, and how many are known to follow.

    No jobs are left where the stage is whole.
    """
    groups = [group for task in stage.tasks for group in groups_of(store, stage, task)]
    jobs = list(dict.fromkeys(job for group in groups for job in group.missing))
    return jobs, max(0, sum(left_of(group) for group in groups) - len(jobs))


def study(
    data: Path,
    store: Store,
    stages: Sequence[Stage],
    *,
    jobs: int,
    seconds: float,
    say: Callable[[str], None] = print,
) -> bool:
    """Run the stages one after the other.

    Args:
        data: The prepared file.
        store: Finished runs; new ones are added as each ends.
        stages: The most important first.
        jobs: Processes; with 1 the runs are made in this one.
        seconds: No run begins after them.
        say: Gets lines about how far it is.

    Returns:
        Whether all stages are whole.
    """
    deadline = time.monotonic() + seconds
    with _Workers(data, jobs) as workers:
        for number, stage in enumerate(stages, 1):
            name = f"stage {number} of {len(stages)}, {stage}"
            while True:
                wanted, later = missing(store, stage)
                if not wanted:
                    break
                if not _round(workers, store, wanted, later, deadline, name, say):
                    say(f"{name}: time is over; the same command goes on from here")
                    return False
            say(f"{name}: whole")
    return True


def _round(
    workers: _Workers,
    store: Store,
    wanted: Sequence[Job],
    later: int,
    deadline: float,
    name: str,
    say: Callable[[str], None],
) -> bool:
    """Do jobs; whether all were done."""
    began = said = time.monotonic()
    # Costs are measured alone: a neighbour would share the caches.
    costs: list[Job] = [job for job in wanted if isinstance(job, CostOf)]
    now = costs or list(wanted)
    done = 0
    for job, found in workers.work(now, deadline, alone=bool(costs)):
        store.keep(job.key(), found)
        done += 1
        if time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            ahead = len(wanted) - done + later
            time_left = _spelled((said - began) / done * ahead)
            say(f"{name}: {ahead} runs ahead or more, {time_left} left")
    return done == len(now)


def _spelled(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


class _Workers:
    """This process, or a pool of others."""

    def __init__(self, data: Path, jobs: int) -> None:
        self.data, self.jobs = data, jobs
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Workers:
        if self.jobs > 1:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.jobs, context, _one_thread)
        return self

    def __exit__(self, *_error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def work(
        self, jobs: list[Job], deadline: float, *, alone: bool
    ) -> Iterator[tuple[Job, dict[str, Any]]]:
        """Jobs and what they found, as they end; none begins after the deadline."""
        if self.pool is None or alone:
            for job in jobs:
                if time.monotonic() > deadline:
                    return
                yield job, work(self.data, job)
            return
        waiting = list(reversed(jobs))
        running: dict[Future[dict[str, Any]], Job] = {}
        while True:
            if time.monotonic() > deadline:
                waiting.clear()
            while waiting and len(running) < _AHEAD * self.jobs:
                job = waiting.pop()
                running[self.pool.submit(work, self.data, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()


def _one_thread() -> None:
    torch.set_num_threads(1)


_problems: dict[tuple[Path, str, str], AnyProblem] = {}


def work(data: Path, job: Job) -> dict[str, Any]:
    """Do one job; a process keeps the problems that it has read."""
    place = data, job.task, job.student
    if place not in _problems:
        text = job.task == TEXT
        _problems[place] = (
            load_text(beside(data), SOURCES[TEXT].steps)
            if text
            else load(data, job.task, job.student)
        )
    if isinstance(job, CostOf):
        return measured(_problems[place], job.method, job.optimizer)
    return train(_problems[place], job)
