"""From a stage to the runs that it still needs, and to what it found; both read the store alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from quality.second.methods import BY_NAME, CENTRES, PLAIN
from quality.second.plan import Stage
from quality.second.store import Store
from quality.second.tasks import SOURCES
from quality.second.training import Run
from quality.second.tuned import Cell, Tuning, replay_together

# Improvements below this share of right answers are none, whatever their error.
_LEAST_GAIN = 0.002


@dataclass(frozen=True)
class CostOf:
    """A measurement of what a step costs."""

    task: str
    student: str
    method: str
    optimizer: str

    def key(self) -> dict[str, Any]:
        """As JSON values."""
        names = ("task", "student", "method", "optimizer")
        return {"cost": True, **{name: getattr(self, name) for name in names}}


Job = Run | CostOf


@dataclass
class Group:
    """The methods of one task and stage at one length.

    Attributes:
        task: Name of the task.
        stage: What is asked.
        length: "fixed", "time 2.25" (times a plain AdamW run), "x4" (times the fixed steps).
        tuned: By method, as far as it is.
        trials: That each method gets.
        finals: Runs that count, by method and number of trials after which they were chosen; 0 is
            all of them.
        missing: Jobs without which it is not whole.
    """

    task: str
    stage: Stage
    length: str = "fixed"
    tuned: dict[str, Tuning] = field(default_factory=dict)
    trials: int = 0
    finals: dict[tuple[str, int], list[Run]] = field(default_factory=dict)
    missing: list[Job] = field(default_factory=list)

    def last(self, method: str) -> list[Run]:
        """The runs of the best of all trials."""
        return self.finals[method, 0]


def left_of(group: Group) -> int:
    """Runs that a group needs still, as far as that is known: other trials may be added."""
    trials = sum(group.trials - len(tuning.merits) for tuning in group.tuned.values())
    if trials:
        size = group.stage.size
        return trials * size.tuning_seeds + len(group.tuned) * size.seeds
    return len(group.missing)


def groups_of(store: Store, stage: Stage, task: str) -> Iterator[Group]:
    """The groups of a stage on a task, as far as the store lets them be known."""
    base = stage.size.steps or SOURCES[task].steps
    methods = [m for m in stage.methods if SOURCES[task].axes in BY_NAME[m].axes]
    if stage.regime == "fixed":
        yield _group(store, stage, task, methods, _alike(base), "fixed")
    elif stage.regime == "time":
        yield from _equal_time(store, stage, task, methods, base)
    else:
        yield from _saturated(store, stage, task, methods, base)


def cost_of(group: Group, method: str) -> CostOf:
    """The cost of a method's step with the optimizer that its tuning chose."""
    optimizer = group.tuned[method].best().optimizer
    return CostOf(group.task, group.stage.student, method, optimizer)


def time_of(store: Store, group: Group, method: str) -> float:
    """Of a method's run, in plain AdamW runs of the same steps; in quarters."""
    return quartered(store[cost_of(group, method).key()]["ratio"])


def quartered(ratio: float) -> float:
    """Rounded up to quarters, in plain's favour; methods of nearly one cost share plain's runs."""
    return max(1.0, math.ceil(4 * ratio - 1e-9) / 4)


def timed(ratio: float) -> str:
    """The length of plain runs that take so many times a plain AdamW run."""
    return f"time {ratio:g}"


def stopped(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether twice the steps improved nothing that can be seen.

    Args:
        before: Validation accuracy of the runs, by seed.
        after: Of those with twice the steps, the same seeds.
    """
    gains = [b - a for a, b in zip(before, after, strict=True)]
    return mean(gains) < max(_LEAST_GAIN, stdev(gains) / math.sqrt(len(gains)))


def _alike(steps: int) -> tuple[tuple[str, int], ...]:
    return tuple((optimizer, steps) for optimizer in CENTRES)


def _group(
    store: Store,
    stage: Stage,
    task: str,
    methods: Sequence[str],
    steps: tuple[tuple[str, int], ...],
    length: str,
) -> Group:
    size = stage.size
    cells = [Cell(task, stage.student, stage.loss, method, steps) for method in methods]
    group = Group(task, stage, length)
    group.tuned, group.trials = replay_together(
        store, cells, size.trials, size.most_trials, size.tuning_seeds
    )
    group.missing = [run for tuning in group.tuned.values() for run in tuning.missing]
    if group.missing:
        return group
    for cell in cells:
        tuning = group.tuned[cell.method]
        group.finals[cell.method, 0] = cell.fresh(tuning.best(), size.seeds)
        for after in size.after:
            group.finals[cell.method, after] = cell.fresh(tuning.best(after), size.after_seeds)
    wanted = dict.fromkeys(run for runs in group.finals.values() for run in runs)
    group.missing = [run for run in wanted if run.key() not in store]
    return group


def _equal_time(
    store: Store, stage: Stage, task: str, methods: Sequence[str], base: int
) -> Iterator[Group]:
    """All methods, then plain for the time of each one's best run; runs of one time are a group."""
    fixed = _group(store, stage, task, methods, _alike(base), "fixed")
    yield fixed
    if fixed.missing:
        return
    group = Group(task, stage)
    plain = {o: CostOf(task, stage.student, PLAIN.name, o) for o in CENTRES}
    ours = {m: cost_of(fixed, m) for m in methods if m != PLAIN.name and not BY_NAME[m].control}
    group.missing = [c for c in (*plain.values(), *ours.values()) if c.key() not in store]
    if group.missing:
        yield group
        return
    for ratio in sorted({time_of(store, fixed, m) for m in ours}):
        steps = tuple(
            (o, max(1, math.ceil(base * ratio / store[cost.key()]["ratio"])))
            for o, cost in plain.items()
        )
        yield _group(store, stage, task, [PLAIN.name], steps, timed(ratio))


def _saturated(
    store: Store, stage: Stage, task: str, methods: Sequence[str], base: int
) -> Iterator[Group]:
    """Plain at doubled steps until it stops; then every method at the last that still gained."""
    before = _group(store, stage, task, [PLAIN.name], _alike(base), "x1")
    length = 1
    while not before.missing and length < 2**stage.size.doublings:
        yield before
        steps = _alike(2 * length * base)
        after = _group(store, stage, task, [PLAIN.name], steps, f"x{2 * length}")
        if after.missing:
            yield after
            return
        if stopped(*(_validation(store, g.last(PLAIN.name)) for g in (before, after))):
            yield after
            break
        before, length = after, 2 * length
    if before.missing:
        yield before
        return
    yield _group(store, stage, task, methods, _alike(length * base), "saturated")


def _validation(store: Store, runs: Sequence[Run]) -> list[float]:
    return [store[run.key()]["validation"][0] for run in runs]
