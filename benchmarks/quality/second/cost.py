"""What a step costs, in steps of plain AdamW, side by side in processor time of one thread."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from bench.clock import Clock
from bench.intervals import paired
from bench.race import race

from quality.second.methods import BY_NAME, PLAIN
from quality.second.search import Trial
from quality.second.training import AnyProblem, batches, begun

_LAPS, _STEPS = 7, 6


def measured(
    problem: AnyProblem, method: str, optimizer: str, *, laps: int = _LAPS
) -> dict[str, float]:
    """Ratio of the processor times of a step.

    Both sides take turns in an order drawn anew, so that what slows the machine slows both; a lap
    of each before that warms up and does not count.

    Returns:
        "ratio": median over the laps. "spread": the range of the middle half of them.
    """
    ours = _Stepping(problem, method, optimizer)
    plain = _Stepping(problem, PLAIN.name, "adamw")
    sides: dict[str, Callable[[], object]] = {"ours": ours.lap, "plain": plain.lap}
    for lap in sides.values():
        lap()
    clock = Clock(torch.device("cpu"), "cpu")
    times = race(sides, clock=clock, rng=np.random.default_rng(0), rounds=laps)
    ratios = sorted(paired(times["ours"], times["plain"]))
    quarter = len(ratios) // 4
    return {"ratio": median(ratios), "spread": ratios[-1 - quarter] - ratios[quarter]}


class _Stepping:
    def __init__(self, problem: AnyProblem, method: str, optimizer: str) -> None:
        trial = Trial(optimizer, rate=-8)
        self.problem = problem
        self.model, self.optimizer = begun(problem, BY_NAME[method], trial, 100, seed=0)
        self.rows: Any = batches(problem.count, seed=0)

    def lap(self) -> None:
        """A few steps."""
        for _ in range(_STEPS):
            loss = self.problem.loss(self.model, next(self.rows), "distil")
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
