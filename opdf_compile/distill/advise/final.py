"""The final comparison: fresh seeds, both sides at their best setting, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opdf_compile.distill.advise.folds import Fold, Folds
from opdf_compile.distill.advise.runner import OutOfTime, Trained

# Far from the tuning's seeds, which count from 0.
FIRST_SEED = 1000
# A pair is started only if the longest so far would fit with this to spare.
_SLACK = 1.05
Run = Callable[[int, Fold, int, int], Trained]


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
    run: Run,
    steps: Callable[[float], Sequence[int]],
    folds: Folds,
    *,
    parts: int,
    left: Callable[[], float],
    say: Callable[[str], None],
) -> list[Pair]:
    """Run pairs until there are enough, or the next would not fit into the time.

    How many there are does not depend on what they show: looking at the interval and stopping when
    it suits would make it too short.

    Args:
        run: Trains and scores; of the side (0 plain, 1 over-parameterised), fold, seed and steps.
        steps: Steps of both sides' next runs, which take equal time; of the seconds that the plain
            student's runs have trained longer so far.
        folds: Where each seed's examples come from.
        parts: Pairs that are enough, each with examples of its own to score.
        left: Seconds that are left.
        say: Told what runs.
    """
    pairs: list[Pair] = []
    longest = 0.0
    while len(pairs) < parts and left() >= _SLACK * longest:
        before, seed = left(), FIRST_SEED + len(pairs)
        say(f"final comparison, pair {len(pairs) + 1}")
        fold, counts, runs = folds.final(len(pairs), parts), steps(_ahead(pairs)), {}
        try:
            # Sides take turns in going first: a machine that warms up favours neither.
            for side in (0, 1) if len(pairs) % 2 == 0 else (1, 0):
                runs[side] = run(side, fold, seed, counts[side])
        except OutOfTime:
            break
        pairs.append(Pair(seed, (runs[0], runs[1])))
        longest = max(longest, before - left())
    return pairs


def _ahead(pairs: Sequence[Pair]) -> float:
    return sum(pair.runs[0].seconds - pair.runs[1].seconds for pair in pairs)
