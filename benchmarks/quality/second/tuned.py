"""What a store says about the tuning of a method: replayed from its runs, never kept beside them.

The search is a function of the merits so far, so what has been run says what comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean

from quality.second.methods import BY_NAME
from quality.second.search import Merit, Trial, best_of, next_trial, open_axes
from quality.second.store import Store
from quality.second.training import FIRST_FRESH_SEED, Run

_FIRST_TUNING_SEED = 200


@dataclass(frozen=True)
class Cell:
    """One method in one setting.

    Attributes:
        task: Name of the task.
        student: Name of the student.
        loss: "labels" or "distil".
        method: Name of the method.
        steps: Length of a run by optimizer, as pairs.
    """

    task: str
    student: str
    loss: str
    method: str
    steps: tuple[tuple[str, int], ...]

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Those that the method works with."""
        return tuple(BY_NAME[self.method].centres)

    def run(self, trial: Trial, seed: int) -> Run:
        """One training of this cell."""
        steps = dict(self.steps)[trial.optimizer]
        return Run(self.task, self.student, self.loss, self.method, steps, trial, seed)

    def fresh(self, trial: Trial, seeds: int) -> list[Run]:
        """The runs that count."""
        return [self.run(trial, FIRST_FRESH_SEED + k) for k in range(seeds)]


@dataclass
class Tuning:
    """The trials of a cell so far, in their order.

    Attributes:
        merits: By trial.
        missing: Runs without which the search cannot go on; empty where it has its trials.
    """

    merits: dict[Trial, Merit] = field(default_factory=dict)
    missing: list[Run] = field(default_factory=list)

    def best(self, after: int | None = None) -> Trial:
        """The best of the first `after` trials, or of all."""
        first = dict(list(self.merits.items())[:after])
        return best_of(first)

    @property
    def open(self) -> tuple[str, ...]:
        """Axes on which the best is at the edge of all that was tried."""
        return open_axes(self.best(), self.merits)


def replay(store: Store, cell: Cell, trials: int, seeds: int) -> Tuning:
    """The search of a cell, as far as its runs are there.

    Args:
        store: Finished runs.
        cell: The method and setting.
        trials: How many it gets.
        seeds: Tuning seeds of each.
    """
    found = Tuning()
    while len(found.merits) < trials:
        trial = next_trial(found.merits, cell.optimizers)
        runs = [cell.run(trial, _FIRST_TUNING_SEED + k) for k in range(seeds)]
        found.missing = [run for run in runs if run.key() not in store]
        if found.missing:
            break
        scores = [store[run.key()]["validation"] for run in runs]
        found.merits[trial] = mean(s[0] for s in scores), mean(s[1] for s in scores)
    return found


def replay_together(
    store: Store, cells: Sequence[Cell], trials: int, most: int, seeds: int
) -> tuple[dict[str, Tuning], int]:
    """The searches of a group: more trials for all, while one's best is at an edge.

    Returns:
        Tuning by method, and the number of trials that each of them gets.
    """
    while True:
        found = {cell.method: replay(store, cell, trials, seeds) for cell in cells}
        whole = not any(tuning.missing for tuning in found.values())
        if not whole or trials >= most or not any(tuning.open for tuning in found.values()):
            return found, trials
        trials = min(most, trials + 2)
