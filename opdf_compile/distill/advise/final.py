"""The final comparison: fresh seeds, both sides at their best setting, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opdf_compile.distill.advise.holdouts import Holdout, Holdouts
from opdf_compile.distill.advise.trainer import OutOfTime, Trained

# Far from the tuning's seeds, which count from 0.
FIRST_SEED = 1000
# A pair is started only if the longest so far would fit with this to spare.
_SLACK = 1.05
_Run = Callable[[int, Holdout, int, int], Trained]


@dataclass(frozen=True)
class PairOfRuns:
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
    run: _Run,
    steps: Callable[[float], Sequence[int]],
    holdouts: Holdouts,
    *,
    parts: int,
    left: Callable[[], float],
    say: Callable[[str], None],
) -> list[PairOfRuns]:
    """Run pairs until there are enough, or the next would not fit into the time.

    How many there are does not depend on what they show: looking at the interval and stopping when
    it suits would make it too short.

    Args:
        run: Trains and scores; of side (0 plain, 1 over-parameterised), holdout, seed and steps.
        steps: Steps of both sides' next runs, which take equal time; of the seconds that the plain
            student's runs have trained longer so far.
        holdouts: Where each seed's examples come from.
        parts: Pairs that are enough, each with examples of its own to score.
        left: Seconds that are left.
        say: Told what runs.
    """
    pairs: list[PairOfRuns] = []
    longest = 0.0
    while len(pairs) < parts and left() >= _SLACK * longest:
        before, seed = left(), FIRST_SEED + len(pairs)
        say(f"final comparison, pair {len(pairs) + 1}")
        holdout, counts, runs = holdouts.final(len(pairs), parts), steps(_ahead(pairs)), {}
        try:
            # Sides take turns in going first: a machine that warms up favours neither.
            for side in (0, 1) if len(pairs) % 2 == 0 else (1, 0):
                runs[side] = run(side, holdout, seed, counts[side])
        except OutOfTime:
            break
        pairs.append(PairOfRuns(seed, (runs[0], runs[1])))
        longest = max(longest, before - left())
    return pairs


def _ahead(pairs: Sequence[PairOfRuns]) -> float:
    return sum(pair.runs[0].seconds - pair.runs[1].seconds for pair in pairs)
