"""Adds groups of sessions until the verdict of every shape is clear, or the budget is used.

A *round* times one block of each of the three sessions in random order, so that whatever the
machine does meets all three alike; the log-ratios candidate / reference and control / reference of
a round are paired. Several groups are needed because a session draws its algorithms and its memory
when it is made. At least as much time goes into rounds as into making sessions, where the budget
allows 16 rounds in each group; equal parts are within a factor of two of the best split, whatever
the two kinds of noise are.

The race looks at its result only after 4, 6, 9, 14, ... groups, and ends a shape there only on
evidence at the 99 % level; what time is left goes to the shapes that are still open. When the
budget is used it decides at 90 %. Stopping at the first glimpse of a wanted result would call noise
a verdict.

Several shapes: all of them must pass. That needs no correction, because a false "pass" has to pass
the one shape that is slower too (intersection-union test). One "fail" refutes, so each of k shapes
must fail at the level that leaves one k-th of the error (Bonferroni).

Source: Haybittle (1971) and Peto et al. (1976) for looks at a sharper level; Berger, Multiparameter
Hypothesis Testing and Acceptance Sampling, Technometrics (1982), for the intersection-union test.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from opdf_compile.parity.latency.latency_result import SESSION_ROLES, SessionRole
from opdf_compile.parity.latency.ratio_interval import (
    EARLY_LEVEL,
    FINAL_LEVEL,
    Decision,
    LatencyRule,
    Spread,
    bootstrap,
    decide,
)
from opdf_compile.parity.latency.timing import runs_per_block, undisturbed

Progress = Callable[[str, float], None]

# Few, because each look may err: 8 of them, at 0.5 % each side, add at most 4 % to the last one.
LOOKS = (4, 6, 9, 14, 22, 44, 88, 176)
MOST_GROUPS = 256
# Even a budget that is too small buys this much, because less decides nothing.
LEAST_GROUPS, LEAST_ROUNDS = 3, 6
# What a group gets where the budget allows: the trimmed mean of fewer is moved by two interrupted
# rounds, and one such group widens the interval over all of them.
GOOD_ROUNDS, MOST_ROUNDS = 16, 60
_GROUPS_TO_FIT = 6
_PILOT_ROUNDS = 3
SEED = 20240411

_Array = npt.NDArray[np.float64]


class Bench(Protocol):
    """What a race measures on; `bench.Bench`, or a simulation in the tests."""

    def open(self, first: int) -> None:
        """Make a new group of sessions, which run the shape `first` first."""

    def warm_up(self, shape: int) -> float:
        """Run until steady; return seconds of one run."""

    def round(self, shape: int, runs: int, single: float) -> dict[SessionRole, float]:
        """Seconds per run of one block of each session."""


@dataclass
class Track:
    """One shape in the race.

    Attributes:
        rounds: Rounds per group, fixed before any ratio has been seen.
        runs: Runs per block.
        single: Seconds of one run, about.
        groups: Seconds per run by role, one entry for each group.
        closed: Whether its verdict was clear at a look.
    """

    rounds: int = 0
    runs: int = 0
    single: float = 0.0
    groups: list[dict[SessionRole, list[float]]] = field(default_factory=list)
    closed: bool = False

    def table(self) -> dict[SessionRole, _Array]:
        """Seconds per run by role, shape (groups, rounds)."""
        return {role: np.array([group[role] for group in self.groups]) for role in SESSION_ROLES}

    def spreads(self) -> tuple[Spread, Spread]:
        """Bootstrap distributions of candidate / reference and control / reference."""
        logs = {role: np.log(values) for role, values in self.table().items()}
        rng = np.random.default_rng([SEED, len(self.groups)])
        return (
            bootstrap(logs["candidate"] - logs["reference"], rng),
            bootstrap(logs["control"] - logs["reference"], rng),
        )


@dataclass(frozen=True)
class Question:
    """What is asked of every shape.

    Attributes:
        margin: Allowed relative difference.
        rule: "no-slower" or "equal".
        shapes: How many shapes share the error of a false "fail".
    """

    margin: float
    rule: LatencyRule
    shapes: int

    def verdict(self, spreads: tuple[Spread, Spread], level: float = FINAL_LEVEL) -> Decision:
        """The verdict of one shape at a level."""
        main, control = spreads
        noise = control.interval(level)
        found = decide(main.interval(level), noise, margin=self.margin, rule=self.rule)
        if found != "fail" or self.shapes == 1:
            return found
        shared = main.interval(1.0 - (1.0 - level) / self.shapes)
        return decide(shared, noise, margin=self.margin, rule=self.rule)


class Race:
    """Adds groups until the verdict is clear or the budget is used."""

    def __init__(
        self,
        bench: Bench,
        question: Question,
        budget: float,
        progress: Progress = lambda text, share: None,
        *,
        began: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.tracks = [Track() for _ in range(question.shapes)]
        self.groups = 0
        self._bench, self._question, self._budget = bench, question, budget
        self._progress, self._clock = progress, clock
        self._begin = clock() if began is None else began

    def run(self) -> str:
        """Measure; return how it ended, as a sentence."""
        with undisturbed():
            return self._add_groups()

    def _add_groups(self) -> str:
        while self.groups < MOST_GROUPS:
            began = self._clock()
            self._measure_group()
            self.groups += 1
            if self.groups in LOOKS and self._clear():
                return f"the verdict was clear at {EARLY_LEVEL:.0%} after {self.groups} groups"
            now = self._clock()
            used, group_cost = now - self._begin, now - began
            if self.groups >= LEAST_GROUPS and used + group_cost > self._budget:
                return f"the budget of {self._budget:g} s was used"
        return f"all {MOST_GROUPS} groups were measured"

    def _clear(self) -> bool:
        """Close the shapes that are clear; true where nothing is open or one has failed."""
        for track in self.tracks:
            if track.closed:
                continue
            verdict = self._question.verdict(track.spreads(), EARLY_LEVEL)
            track.closed = verdict != "inconclusive"
            if verdict == "fail":
                return True
        return all(track.closed for track in self.tracks)

    def _measure_group(self) -> None:
        began = self._clock()
        self._bench.open(self.groups % len(self.tracks))
        opened = [(shape, track) for shape, track in enumerate(self.tracks) if not track.closed]
        for shape, track in opened:
            track.single = self._bench.warm_up(shape)
        setup = self._clock() - began
        for shape, track in opened:
            if not track.rounds:
                self._plan(shape, track, setup)
            track.groups.append(self._rounds(shape, track))

    def _rounds(self, shape: int, track: Track) -> dict[SessionRole, list[float]]:
        seconds: dict[SessionRole, list[float]] = {role: [] for role in SESSION_ROLES}
        for _ in range(track.rounds):
            for role, value in self._bench.round(shape, track.runs, track.single).items():
                seconds[role].append(value)
            self._report()
        return seconds

    def _plan(self, shape: int, track: Track, setup: float) -> None:
        """Fix runs per block and rounds per group, before any ratio has been seen."""
        track.runs = runs_per_block(track.single)
        costs = []
        for _ in range(_PILOT_ROUNDS):
            began = self._clock()
            self._bench.round(shape, track.runs, track.single)
            costs.append(self._clock() - began)
        cost = max(statistics.median(costs), 1e-9) * len(self.tracks)
        affordable = int((self._budget / _GROUPS_TO_FIT - setup) / cost)
        wanted = min(MOST_ROUNDS, max(GOOD_ROUNDS, int(setup / cost)))
        track.rounds = max(LEAST_ROUNDS, min(affordable, wanted))

    def _report(self) -> None:
        share = min(1.0, (self._clock() - self._begin) / self._budget)
        open_shapes = sum(not track.closed for track in self.tracks)
        shapes = f", {open_shapes} shapes open" if len(self.tracks) > 1 else ""
        self._progress(f"latency: group {self.groups + 1}{shapes}", share)
