"""Paired comparisons out of a store: one row for each task, setting, method and rival.

Only groups that are whole give rows. Where two stages hold the same comparison, the earlier one
counts, so that what is run later cannot change what decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from quality.second.groups import Group, cost_of, groups_of, time_of, timed
from quality.second.methods import BY_NAME, METHODS, PLAIN
from quality.second.plan import Stage
from quality.second.store import Store
from quality.second.training import Run
from quality.statistics import ALPHA, Corrected, corrected

SCHEMA = "opdf-quality-second/1"
# Plain has twice the saturated steps, which brought it nothing that validation shows.
DOUBLED = "doubled"
# Beside plain: what the decay of HAM alone does.
_RIVALS = {method.name: PLAIN.name for method in METHODS if method is not PLAIN}
_PAIRS = (*_RIVALS.items(), ("ham", "ham-decay"))


@dataclass(frozen=True)
class Outcome:
    """Both sides of a comparison, seed by seed.

    Attributes:
        task: Name of the task.
        student: Name of the student.
        loss: "labels" or "distil".
        regime: "fixed", "time" or "saturated"; `DOUBLED` is not one of the protocol.
        method: Name of the method.
        baseline: Name of its rival.
        after: Number of trials after which both were chosen; 0 is all of them.
        ours: Test accuracy by seed.
        theirs: Of the rival, the same seeds.
        steps: Of the method's run.
        baseline_steps: Of the rival's.
        cost: Of the method's step over plain AdamW's; 0 where it was not measured.
        processor_time: Of our runs over theirs, set-up and scoring included. Where the two were
            made at different hours, what else ran then moves it: caches are shared.
        optimizer: Of the method's best trial.
        baseline_optimizer: Of the rival's.
        edges: What lies at an edge of all that was tried: "method: axis".
    """

    task: str
    student: str
    loss: str
    regime: str
    method: str
    baseline: str
    after: int
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    steps: int
    baseline_steps: int
    cost: float
    processor_time: float
    optimizer: str
    baseline_optimizer: str
    edges: tuple[str, ...]

    @property
    def place(self) -> tuple[Any, ...]:
        """What there is one of."""
        return (self.task, *self.family)

    @property
    def family(self) -> tuple[Any, ...]:
        """What Holm corrects together: the same question on every task."""
        setting = self.student, self.loss, self.regime
        return (*setting, self.method, self.baseline, self.after)


def outcomes(store: Store, stages: Sequence[Stage]) -> list[Outcome]:
    """All comparisons that the store has."""
    found: dict[tuple[Any, ...], Outcome] = {}
    for stage in stages:
        for task in stage.tasks:
            groups = list(groups_of(store, stage, task))
            if any(group.missing for group in groups):
                continue
            for outcome in _of(store, stage, groups):
                found.setdefault(outcome.place, outcome)
    return list(found.values())


def _of(store: Store, stage: Stage, groups: Sequence[Group]) -> Iterator[Outcome]:
    by_length = {group.length: group for group in groups}
    if stage.regime == "time":
        mine = by_length["fixed"]
        for method in mine.tuned:
            if method != PLAIN.name and not BY_NAME[method].control:
                theirs = by_length[timed(time_of(store, mine, method))]
                yield _outcome(store, stage, (mine, method), (theirs, PLAIN.name), 0)
        return
    group = by_length[stage.regime]
    for method, baseline in _PAIRS:
        if method in group.tuned and baseline in group.tuned:
            for after in (0, *stage.size.after):
                yield _outcome(store, stage, (group, method), (group, baseline), after)
    if stage.regime == "saturated":
        yield from _against_twice_the_steps(store, stage, group, groups)


Side = tuple[Group, str]


def _against_twice_the_steps(
    store: Store, stage: Stage, group: Group, groups: Sequence[Group]
) -> Iterator[Outcome]:
    """None where plain still gained at the last doubling."""
    steps = group.last(PLAIN.name)[0].steps
    for longer in groups:
        if longer.last(PLAIN.name)[0].steps == 2 * steps:
            for method in group.tuned:
                if method != PLAIN.name:
                    sides = (group, method), (longer, PLAIN.name)
                    yield replace(_outcome(store, stage, *sides, 0), regime=DOUBLED)


def _outcome(store: Store, stage: Stage, ours: Side, theirs: Side, after: int) -> Outcome:
    sides = [_runs(side, after) for side in (ours, theirs)]
    scores = [tuple(store[run.key()]["test"][0] for run in runs) for runs in sides]
    cost = cost_of(*ours)
    edges = [f"{name}: {', '.join(axes)}" for name, axes in map(_edge, (ours, theirs)) if axes]
    return Outcome(
        task=ours[0].task,
        student=stage.student,
        loss=stage.loss,
        regime=stage.regime,
        method=ours[1],
        baseline=theirs[1],
        after=after,
        ours=scores[0],
        theirs=scores[1],
        steps=sides[0][0].steps,
        baseline_steps=sides[1][0].steps,
        cost=store[cost.key()]["ratio"] if cost.key() in store else 0.0,
        processor_time=_seconds(store, sides[0]) / _seconds(store, sides[1]),
        optimizer=sides[0][0].trial.optimizer,
        baseline_optimizer=sides[1][0].trial.optimizer,
        edges=tuple(edges),
    )


def _seconds(store: Store, runs: Sequence[Run]) -> float:
    return float(median(store[run.key()]["seconds"] for run in runs))


def _runs(side: Side, after: int) -> list[Run]:
    group, method = side
    return group.finals[method, after]


def _edge(side: Side) -> tuple[str, tuple[str, ...]]:
    group, method = side
    return method, group.tuned[method].open


@dataclass(frozen=True)
class Row(Corrected):
    """One comparison, corrected over its family.

    Attributes:
        outcome: What was compared.
    """

    outcome: Outcome

    @property
    def better(self) -> int:
        """1 where Holm's interval lies above zero, -1 below, 0 across."""
        return (self.ci_low > 0) - (self.ci_high < 0)


def rows_of(found: Iterable[Outcome], *, alpha: float = ALPHA) -> list[Row]:
    """Compare, and correct over the tasks of every family."""
    families: dict[tuple[Any, ...], list[Outcome]] = {}
    for outcome in found:
        families.setdefault(outcome.family, []).append(outcome)
    return [row for members in families.values() for row in _family(members, alpha)]


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The JSON value of the rows."""
    return {"schema": SCHEMA, "rows": [asdict(row) for row in rows]}


def _family(members: Sequence[Outcome], alpha: float) -> Iterator[Row]:
    found = corrected([(m.ours, m.theirs) for m in members], alpha=alpha)
    for outcome, each in zip(members, found, strict=True):
        yield Row(**asdict(each), outcome=outcome)
