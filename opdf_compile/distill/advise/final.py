"""The final comparison: fresh seeds, both sides at their best setting, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opdf_compile.distill.advise.folds import Folds
from opdf_compile.distill.advise.methods import Method
from opdf_compile.distill.advise.runner import OutOfTime, Runner, Trained

# Far from the tuning's seeds, which count from 0.
FIRST_SEED = 1000
# A pair is started only if the longest so far would fit with this to spare.
_SLACK = 1.05
Setting = tuple[Method, float, float]


@dataclass(frozen=True)
class Pair:
    """Both sides with one seed: equal start weights, order of examples and examples to score.

    Attributes:
        seed: The seed.
        runs: The plain run, and the over-parameterised one.
    """

    seed: int
    runs: tuple[Trained, Trained]

    @property
    def difference(self) -> float | None:
        """Over-parameterised minus plain score; None where one of them diverged."""
        plain, over = (run.score.value for run in self.runs)
        return over - plain if math.isfinite(over) and math.isfinite(plain) else None


def final(
    runner: Runner,
    folds: Folds,
    settings: Sequence[Setting],
    steps: Sequence[int],
    *,
    most: int,
    left: Callable[[], float],
    say: Callable[[str], None],
) -> list[Pair]:
    """Run pairs until there are enough, or the next would not fit into the time.

    How many there are does not depend on what they show: looking at the interval and stopping when
    it suits would make it too short.

    Args:
        runner: Trains and scores.
        folds: Where each seed's examples come from.
        settings: Method, rate and decay of plain and of the other side.
        steps: Steps of their runs.
        most: Pairs that are enough.
        left: Seconds that are left.
        say: Told what runs.
    """
    pairs: list[Pair] = []
    longest = 0.0
    while len(pairs) < most and left() >= _SLACK * longest:
        before, seed = left(), FIRST_SEED + len(pairs)
        say(f"final, seed {len(pairs) + 1}")
        try:
            runs = _pair(runner, folds, settings, steps, seed)
        except OutOfTime:
            break
        pairs.append(Pair(seed, runs))
        longest = max(longest, before - left())
    return pairs


def _pair(
    runner: Runner, folds: Folds, settings: Sequence[Setting], steps: Sequence[int], seed: int
) -> tuple[Trained, Trained]:
    fold = folds.final(seed)
    runs: dict[int, Trained] = {}
    # Sides take turns in going first: a machine that warms up or slows down favours neither.
    for place in (0, 1) if seed % 2 == 0 else (1, 0):
        method, lr, decay = settings[place]
        runs[place] = runner.run(method, lr, decay, fold=fold, seed=seed, steps=steps[place])
    return runs[0], runs[1]
