"""Is the candidate as fast as the reference? Paired, interleaved, randomised, with a control.

One *group* is three sessions made one after the other in random order: reference, candidate and a
second reference, the control. A *round* times one block of each, again in random order, so that
whatever the machine does meets all three alike. The log-ratios candidate / reference and
control / reference of a round are paired; `statistics.py` turns groups of rounds into intervals.

Several groups are needed because a session draws its algorithms and its memory when it is made. The
measurement looks at its result only after 4, 6, 9, 13, ... groups, and ends there only on evidence
at the 99 % level; otherwise it goes on until the budget of time is used and then decides at 90 %.
Stopping at the first glimpse of a wanted result would call noise a verdict.

How often this errs, on synthetic races with a margin of 0.05: at a true ratio of exactly 1.05 the
rule said "pass" or "fail" in at most 7.5 % of cases each; at 1.00 it never said "fail" and at 1.10
never "pass", 1800 races each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from opdf_compile.errors import InputError
from opdf_compile.verify.latency.inputs import latency_inputs
from opdf_compile.verify.latency.result import ROLES, LatencyResult, Role
from opdf_compile.verify.latency.statistics import (
    EARLY_LEVEL,
    RULES,
    Rule,
    Spread,
    bootstrap,
    judge,
)
from opdf_compile.verify.latency.timing import (
    BoundSession,
    bind,
    runs_per_block,
    settle,
    undisturbed,
    warm_up,
)
from opdf_compile.verify.runtime.loading import load_onnx
from opdf_compile.verify.runtime.sessions import Device, create_session, session_options

Progress = Callable[[str, float], None]

LOOKS = (4, 6, 9, 13, 19, 28, 42)
MOST_GROUPS = 64
# Even a budget that is too small buys this much, because less decides nothing.
LEAST_GROUPS, LEAST_ROUNDS = 3, 6
MOST_ROUNDS = 60
_GROUPS_TO_FIT = 6
SEED = 20240411

_Array = npt.NDArray[np.float64]


def measure_latency(
    candidate: Path,
    reference: Path,
    device: Device,
    *,
    margin: float,
    rule: Rule = "no-slower",
    budget: float = 60.0,
    check: Path | None = None,
    threads: int | None = None,
    seed: int = SEED,
    progress: Progress | None = None,
) -> LatencyResult:
    """Measure candidate / reference and decide.

    Args:
        candidate: The ONNX file about to ship.
        reference: The ONNX file that it must not be slower than.
        device: Where to run.
        margin: Allowed relative difference, above 0 and below 1.
        rule: "no-slower" (one-sided) or "equal" (both sides).
        budget: Seconds to spend; a clear verdict ends earlier, the minimum of groups may take more.
        check: Check data, whose first sample gives the inputs; None draws them.
        threads: Threads within one operator; None leaves the choice to the runtime.
        seed: Fixes the orders, the drawn inputs and the resampling.
        progress: Called with a sentence and the share of the budget that is used.

    Raises:
        ArtefactError: A file cannot be read.
        DeviceError: The provider cannot run a model.
        InputError: An argument is out of range, or a model does not run on the inputs.
    """
    check_budget(budget)
    if rule not in RULES:
        raise InputError(f"latency is {rule!r}; give {' or '.join(RULES)}")
    for path in (candidate, reference):
        load_onnx(path)  # Once, so that making the sessions can leave it out.
    paths = {"candidate": candidate, "reference": reference, "control": reference}
    bench = _Bench(paths, device, check, threads, np.random.default_rng(seed))
    race = _Race(bench, margin, rule, budget, progress or (lambda text, share: None))
    ended = race.run()
    main, control = race.spreads()
    return _result(race, main, control, ended)


def check_budget(budget: float) -> None:
    """Refuse a budget that is no positive number of seconds.

    Raises:
        InputError: The sentence says what was given.
    """
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise InputError(f"budget is {budget!r}; give seconds above 0")
    if not (math.isfinite(budget) and budget > 0):
        raise InputError(f"budget is {budget:g}; give seconds above 0")


class _Bench:
    """Makes groups of sessions and times rounds."""

    def __init__(
        self,
        paths: Mapping[str, Path],
        device: Device,
        check: Path | None,
        threads: int | None,
        rng: np.random.Generator,
    ) -> None:
        self.paths, self.device, self.check, self.threads = paths, device, check, threads
        self.rng = rng
        self._inputs: dict[str, Any] | None = None

    def group(self) -> dict[Role, BoundSession]:
        """New sessions in random order, since the first one made may get the better memory."""
        sessions = {role: self._session(role) for role in self._shuffled()}
        if self._inputs is None:
            self._inputs = latency_inputs(sessions["candidate"], self.check, self.rng)
        return {
            role: bind(session, self._inputs, self.device.name)
            for role, session in sessions.items()
        }

    def round(self, group: Mapping[Role, BoundSession], runs: int) -> dict[Role, float]:
        """Seconds per run of one block of each session, in random order."""
        seconds: dict[Role, float] = {}
        for role in self._shuffled():
            settle(group[role], runs)
            seconds[role] = group[role].seconds(runs)
        return seconds

    def _session(self, role: Role) -> Any:
        path = self.paths[role]
        return create_session(str(path), self.device, session_options(self.threads), str(path))

    def _shuffled(self) -> list[Role]:
        return [ROLES[index] for index in self.rng.permutation(len(ROLES))]


class _Race:
    """Adds groups until the verdict is clear or the budget is used."""

    def __init__(
        self, bench: _Bench, margin: float, rule: Rule, budget: float, progress: Progress
    ) -> None:
        self.bench, self.margin, self.rule = bench, margin, rule
        self.budget, self.progress = budget, progress
        self.rounds = self.runs = 0
        self.groups: list[dict[Role, list[float]]] = []
        self._begin = time.perf_counter()

    def run(self) -> str:
        """Measure; return how it ended, as a sentence."""
        while len(self.groups) < MOST_GROUPS:
            began = time.perf_counter()
            with undisturbed():
                self.groups.append(self._measure_group())
            if len(self.groups) in LOOKS and self._clear():
                return f"the verdict was clear at {EARLY_LEVEL:.0%} after {len(self.groups)} groups"
            group_cost = time.perf_counter() - began
            used = time.perf_counter() - self._begin
            if len(self.groups) >= LEAST_GROUPS and used + group_cost > self.budget:
                return f"the budget of {self.budget:g} s was used"
        return f"all {MOST_GROUPS} groups were measured"

    def table(self) -> dict[Role, _Array]:
        """Seconds per run by role, shape (groups, rounds)."""
        return {role: np.array([group[role] for group in self.groups]) for role in ROLES}

    def spreads(self) -> tuple[Spread, Spread]:
        """Bootstrap distributions of candidate / reference and control / reference."""
        logs = {role: np.log(values) for role, values in self.table().items()}
        rng = np.random.default_rng([SEED, len(self.groups)])
        return (
            bootstrap(logs["candidate"] - logs["reference"], rng),
            bootstrap(logs["control"] - logs["reference"], rng),
        )

    def _clear(self) -> bool:
        main, control = (spread.interval(EARLY_LEVEL) for spread in self.spreads())
        return judge(main, control, margin=self.margin, rule=self.rule) != "inconclusive"

    def _measure_group(self) -> dict[Role, list[float]]:
        began = time.perf_counter()
        group = self.bench.group()
        single = max(warm_up(session) for session in group.values())
        if not self.rounds:
            self._plan(group, single, time.perf_counter() - began)
        seconds: dict[Role, list[float]] = {role: [] for role in ROLES}
        for _ in range(self.rounds):
            for role, value in self.bench.round(group, self.runs).items():
                seconds[role].append(value)
            self._report()
        return seconds

    def _plan(self, group: Mapping[Role, BoundSession], single: float, setup: float) -> None:
        """Fix runs per block and rounds per group, before any ratio has been seen."""
        self.runs = runs_per_block(single)
        began = time.perf_counter()
        self.bench.round(group, self.runs)
        cost = max(time.perf_counter() - began, 1e-9)
        affordable = (self.budget / _GROUPS_TO_FIT - setup) / cost
        self.rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(affordable)))

    def _report(self) -> None:
        share = min(1.0, (time.perf_counter() - self._begin) / self.budget)
        self.progress(f"latency: group {len(self.groups) + 1} of {self.rounds} rounds", share)


def _result(race: _Race, main: Spread, control: Spread, ended: str) -> LatencyResult:
    seconds = race.table()
    interval, noise = main.interval(), control.interval()
    verdict = judge(interval, noise, margin=race.margin, rule=race.rule)
    notes = [f"{ended}; {race.runs} runs per block"]
    if verdict == "inconclusive" and not noise.fits(race.margin):
        notes.append(
            f"the reference against itself gave {noise.low:.3f} to {noise.high:.3f}, which does "
            f"not fit the margin of {race.margin:g}: quieten the machine, raise the budget or the "
            "margin"
        )
    return LatencyResult(
        verdict=verdict,
        device=race.bench.device.name,
        provider=race.bench.device.provider,
        ratio=interval.ratio,
        ci_low=interval.low,
        ci_high=interval.high,
        margin=race.margin,
        rule=race.rule,
        control=noise,
        sessions=len(race.groups),
        rounds=race.rounds,
        reference_ms=float(np.median(seconds["reference"])) * 1e3,
        candidate_ms=float(np.median(seconds["candidate"])) * 1e3,
        seconds=seconds,
        notes=tuple(notes),
    )
