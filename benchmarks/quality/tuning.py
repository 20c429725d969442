"""Tuning: the same rounds of trials for every method, judged on validation over tuning seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quality.engine import STARTS, Engine, Run
from quality.methods import Method
from quality.trials import Trial, best_of, edges, first_round, later_round

# Fresh students are seeded from 1000 on; these are the tuning's own.
_FIRST_SEED = 100


@dataclass(frozen=True)
class Tuned:
    """What the rounds found for one method and start.

    Attributes:
        trial: The best of the last round.
        accuracy: Its validation accuracy, mean over the last round's seeds.
        kl: Its validation KL.
        trials: Number of trials.
        edges: Axes on which it lies at the edge of all that was tried.
    """

    trial: Trial
    accuracy: float
    kl: float
    trials: int
    edges: tuple[str, ...]


Key = tuple[str, str]


def tune(
    engine: Engine, methods: Sequence[Method], steps: Mapping[str, int], seeds: Sequence[int]
) -> dict[Key, Tuned]:
    """Tune every method from every start.

    Args:
        engine: Of the task.
        methods: To be tuned.
        steps: Length of the run, by method.
        seeds: Number of seeds in each round; the first round is the wide grid.

    Returns:
        By (method, start).
    """
    keys = [(method, start) for method in methods for start in STARTS]
    asked = {(m.name, start): first_round(engine.optimizer) for m, start in keys}
    tried: dict[Key, list[Trial]] = {key: [] for key in asked}
    for number, count in enumerate(seeds):
        merits = _round(engine, keys, asked, steps, count)
        best = {key: best_of(found) for key, found in merits.items()}
        for key, trials in asked.items():
            tried[key].extend(trials)
        if number + 1 < len(seeds):
            asked = {key: later_round(trial) for key, trial in best.items()}
    return {
        key: Tuned(trial, *merits[key][trial], len(tried[key]), tuple(edges(trial, tried[key])))
        for key, trial in best.items()
    }


def _round(
    engine: Engine,
    keys: Sequence[tuple[Method, str]],
    asked: Mapping[Key, list[Trial]],
    steps: Mapping[str, int],
    count: int,
) -> dict[Key, dict[Trial, tuple[float, float]]]:
    seeds = range(_FIRST_SEED, _FIRST_SEED + count)
    sums: dict[Key, dict[Trial, tuple[float, float]]] = {key: {} for key in asked}
    for length in sorted({steps[method.name] for method, _start in keys}):
        runs = [
            Run(method, start, seed, trial)
            for method, start in keys
            if steps[method.name] == length
            for trial in asked[method.name, start]
            for seed in seeds
        ]
        for outcome in engine.run(runs, length, ("validation",)):
            run = outcome.run
            found = sums[run.method.name, run.start]
            accuracy, apart = outcome.scores["validation"]
            before = found.get(run.trial, (0.0, 0.0))
            found[run.trial] = before[0] + accuracy / count, before[1] + apart / count
    return sums
