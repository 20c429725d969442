"""A unit of the study: one task, optimizer and length; tuned, then run once with fresh seeds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quality.clock import step_ratio
from quality.engine import STARTS, Engine, Run
from quality.fleet import OptimizerName
from quality.methods import BY_NAME, Method
from quality.tasks import Task
from quality.trials import Trial
from quality.tuning import Tuned, tune

_FIRST_SEED = 1000
# What a user could do without a calibration: keep the plain student's best rate, or divide it by n.
_RULES = {"mpo": 3, "svd": 2}


@dataclass(frozen=True)
class Budget:
    """How much a unit spends.

    Attributes:
        steps: Steps of a run, by name of the length.
        tuning_seeds: Seeds in each round of trials.
        seeds: Fresh seeds of the runs that count.
        methods: Names of what is compared.
    """

    steps: dict[str, int]
    tuning_seeds: tuple[int, ...]
    seeds: int
    methods: tuple[str, ...]


def unit(
    task: Task,
    optimizer: OptimizerName,
    length: str,
    budget: Budget,
    *,
    record: bool,
    students: Any = None,
) -> dict[str, Any]:
    """Tune, run, and return every figure as JSON values."""
    started = time.perf_counter()
    engine = Engine(task, optimizer, record=record, students=students)
    methods = [BY_NAME[name] for name in budget.methods]
    clocks = {m.clock for m in methods if m.clock}
    ratios = {c: step_ratio(task, optimizer, online=c == "online") for c in sorted(clocks)}
    base = budget.steps[length]
    steps = {m.name: max(base, round(base * ratios.get(m.clock, 1.0))) for m in methods}
    tuned = tune(engine, methods, steps, budget.tuning_seeds)
    results = [
        _final(engine, method, start, tuned[method.name, start], steps[method.name], budget.seeds)
        for method, start in _planned(methods)
    ]
    return {
        "task": task.name,
        "optimizer": optimizer,
        "length": length,
        "steps": steps,
        "step_ratios": ratios,
        "results": run_all(engine, results),
        "rules": _rules(engine, tuned, base, budget),
        "seconds": round(time.perf_counter() - started, 1),
        "fleets": engine.fleets,
    }


@dataclass(frozen=True)
class Planned:
    """The runs of one method from one start that count."""

    method: Method
    start: str
    tuned: Tuned
    steps: int
    runs: tuple[Run, ...]


def _planned(methods: Sequence[Method]) -> Iterable[tuple[Method, str]]:
    return [(method, start) for method in methods for start in STARTS]


def _final(
    engine: Engine, method: Method, start: str, tuned: Tuned, steps: int, seeds: int
) -> Planned:
    fresh = range(_FIRST_SEED, _FIRST_SEED + seeds)
    runs = tuple(Run(method, start, seed, tuned.trial) for seed in fresh)
    return Planned(method, start, tuned, steps, runs)


def run_all(engine: Engine, planned: Sequence[Planned]) -> list[dict[str, Any]]:
    """Run them together where they are equally long, and list their scores seed by seed."""
    scored: dict[Run, dict[str, tuple[float, float]]] = {}
    for steps in sorted({plan.steps for plan in planned}):
        runs = [run for plan in planned if plan.steps == steps for run in plan.runs]
        for outcome in engine.run(runs, steps, ("validation", "test")):
            scored[outcome.run] = outcome.scores
    return [
        {
            "method": plan.method.name,
            "start": plan.start,
            "tuned": asdict(plan.tuned),
            "learning_rate": plan.tuned.trial.learning_rate(engine.optimizer),
            "accuracy": [scored[run]["test"][0] for run in plan.runs],
            "kl": [scored[run]["test"][1] for run in plan.runs],
            "validation_accuracy": [scored[run]["validation"][0] for run in plan.runs],
            "validation_kl": [scored[run]["validation"][1] for run in plan.runs],
        }
        for plan in planned
    ]


def _rules(
    engine: Engine, tuned: dict[tuple[str, str], Tuned], steps: int, budget: Budget
) -> list[dict[str, Any]]:
    """Validation scores of the rules for a rate, each starting from plain distillation's best."""
    fresh = range(_FIRST_SEED, _FIRST_SEED + budget.seeds)
    made = []
    for name, cores in _RULES.items():
        if name not in budget.methods:
            continue
        for start in STARTS:
            trial = tuned["plain", start].trial
            rules: dict[str, float | None] = {"same": 1.0, "divided": 1 / cores, "matched": None}
            for rule, factor in rules.items():
                runs = [Run(BY_NAME[name], start, seed, trial, factor) for seed in fresh]
                made.append((name, start, rule, trial, runs))
    everything = [run for *_rest, runs in made for run in runs]
    outcomes = iter(engine.run(everything, steps, ("validation",)))
    return [
        _rule(name, start, rule, trial, [next(outcomes) for _ in runs])
        for name, start, rule, trial, runs in made
    ]


def _rule(name: str, start: str, rule: str, trial: Trial, outcomes: list[Any]) -> dict[str, Any]:
    scores = [outcome.scores["validation"] for outcome in outcomes]
    return {
        "method": name,
        "start": start,
        "rule": rule,
        "trial": asdict(trial),
        "validation_accuracy": [accuracy for accuracy, _kl in scores],
        "validation_kl": [kl for _accuracy, kl in scores],
    }
