"""The search for a method's own best trial: one rule, the same number of trials for every method.

A trial is an optimizer, a rate and a decay, on a grid without ends:

    rate    centre 10^(step / 4), the centre of the optimizer (methods.py)
    decay   lr weight_decay steps, what decay takes from a weight at the peak rate over the run:
            none at step 0, then 0.1 sqrt(10)^(step - 1)

    trials 1 to 3   every optimizer at its centre, without decay
    up to 9         the optimizer with the fewest trials (of several the best) goes to the next rate
                    beside its best, a factor of sqrt(10) away
    then            the best of all: its decay up, down; rate up, down by sqrt(10); by 10^(1/4)

so the trials follow a method wherever its best lies. The search does not end by itself. Its best is
interior where both neighbours of its rate and of its decay have been tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LINE_TRIALS = 9
_WIDE, _FINE = 2, 1


@dataclass(frozen=True, order=True)
class Trial:
    """One setting of a run, on the grid.

    Attributes:
        optimizer: "adamw", "sgd" or "muon".
        rate: Steps from the centre, a factor of 10^(1/4) each.
        decay: Steps of the decay; 0 is none.
    """

    optimizer: str
    rate: int = 0
    decay: int = 0

    def learning_rate(self, centres: Mapping[str, float]) -> float:
        """The peak rate."""
        return float(centres[self.optimizer] * 10 ** (self.rate / 4))

    def weight_decay(self, centres: Mapping[str, float], steps: int) -> float:
        """The optimizer's own decay, which it multiplies by the rate at each step."""
        if self.decay == 0:
            return 0.0
        share = 0.1 * math.sqrt(10) ** (self.decay - 1)
        return share / (self.learning_rate(centres) * steps)


# Validation accuracy and validation loss, means over the tuning seeds.
Merit = tuple[float, float]
Merits = Mapping[Trial, Merit]


def best_of(merits: Merits) -> Trial:
    """The highest accuracy; of equal ones the lowest loss."""
    return max(merits, key=lambda trial: (merits[trial][0], -merits[trial][1], trial))


def next_trial(merits: Merits, optimizers: Sequence[str]) -> Trial:
    """What is tried next.

    Args:
        merits: All that was tried.
        optimizers: Those that the method works with.
    """
    for name in optimizers:
        if Trial(name) not in merits:
            return Trial(name)
    if len(merits) < _LINE_TRIALS:
        return _along_the_rates(merits, optimizers)
    best = best_of(merits)
    found = _untried(best, merits, _everywhere(best))
    # All around the best was tried: a ring further out, along the rate.
    distance = 3
    while not found:
        found = _untried(best, merits, [(distance, 0), (-distance, 0)])
        distance += 1
    return found[0]


def open_axes(best: Trial, merits: Merits) -> tuple[str, ...]:
    """Axes on which the best has no neighbour on one side; no decay at all is a natural end."""

    def tried(sign: int) -> bool:
        """Whether a rate on this side was tried, near enough."""
        at = (Trial(best.optimizer, best.rate + sign * k, best.decay) for k in (_FINE, _WIDE))
        return any(trial in merits for trial in at)

    found = [] if tried(1) and tried(-1) else ["rate"]
    beside = [(0, 1), (0, -1)] if best.decay else [(0, 1)]
    if _untried(best, merits, beside):
        found.append("decay")
    return tuple(found)


def _along_the_rates(merits: Merits, optimizers: Sequence[str]) -> Trial:
    lines = {o: {t: m for t, m in merits.items() if t.optimizer == o} for o in optimizers}
    fewest = min(len(line) for line in lines.values())
    short = [line for line in lines.values() if len(line) == fewest]
    best = best_of({trial: merit for line in short for trial, merit in line.items()})
    found = _untried(best, merits, [(_WIDE, 0), (-_WIDE, 0), (_FINE, 0), (-_FINE, 0)])
    distance = 2
    while not found:
        found = _untried(best, merits, [(distance * _WIDE, 0), (-distance * _WIDE, 0)])
        distance += 1
    return found[0]


def _everywhere(best: Trial) -> list[tuple[int, int]]:
    down = [(0, -1)] if best.decay else []
    return [(0, 1), *down, (_WIDE, 0), (-_WIDE, 0), (_FINE, 0), (-_FINE, 0)]


def _untried(best: Trial, merits: Merits, moves: Sequence[tuple[int, int]]) -> list[Trial]:
    moved = [Trial(best.optimizer, best.rate + r, best.decay + d) for r, d in moves]
    return [trial for trial in moved if trial not in merits]
