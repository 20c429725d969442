"""The search for a method's own best options: the same number of trials for every method.

    rates      three, a factor of sqrt(10) apart; the grid grows at the side of the best one until
               the best is not at an edge; what is left of the six trials refines around the best
    decay      three values at the best rate
    momentum   two values at the best of these
    rate       one more, between the best and its better neighbour

Source of the scale: the best rate of over-parameterised training differs from the plain one by up
to an order of magnitude, so a common grid would favour one side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

RATES = (1e-4, 1e-4 * math.sqrt(10), 1e-3)
RATE_TRIALS = 6
DECAYS = (0.01, 0.1, 1.0)
MOMENTA = (0.8, 0.95)
TRIALS = RATE_TRIALS + len(DECAYS) + len(MOMENTA) + 1


@dataclass(frozen=True, order=True)
class Options:
    """What is searched; the defaults are where the search begins."""

    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.9


@dataclass(frozen=True)
class Found:
    """The best options, their merit, and whether their rate has trials on both sides."""

    options: Options
    merit: float
    interior: bool
    trials: int


# Merits of options, in their order; higher is better, NaN counts as worst.
Try = Callable[[list[Options]], list[float]]


def search(attempt: Try) -> Found:
    """Spend exactly `TRIALS` trials.

    Args:
        attempt: Runs options and returns their merits; several at once may run side by side.
    """
    merits: dict[Options, float] = {}

    def look(options: list[Options]) -> None:
        for option, merit in zip(options, attempt(options), strict=True):
            merits[option] = merit if math.isfinite(merit) else -math.inf

    look([Options(rate) for rate in RATES])
    while len(merits) < RATE_TRIALS:
        look([Options(_next_rate({o.lr: m for o, m in merits.items()}))])
    best = _best(merits)
    look([Options(best.lr, decay) for decay in DECAYS])
    best = _best(merits)
    look([Options(best.lr, best.weight_decay, momentum) for momentum in MOMENTA])
    best = _best(merits)
    rates = {o.lr: m for o, m in merits.items() if o.weight_decay == 0 and o.momentum == 0.9}
    look([Options(_between(best.lr, rates), best.weight_decay, best.momentum)])
    best = _best(merits)
    tried = {o.lr for o in merits}
    interior = min(tried) < best.lr < max(tried)
    return Found(best, merits[best], interior, len(merits))


def _best(merits: dict[Options, float]) -> Options:
    return max(merits, key=lambda option: (merits[option], -option.lr))


def _next_rate(rates: dict[float, float]) -> float:
    """Beyond the edge if the best rate is there, else between the best and a neighbour."""
    best = max(rates, key=lambda rate: rates[rate])
    if best == min(rates):
        return best / math.sqrt(10)
    if best == max(rates):
        return best * math.sqrt(10)
    return _between(best, rates)


def _between(best: float, rates: dict[float, float]) -> float:
    """The geometric middle of the best rate and the neighbour that is further off it.

    Of equally far neighbours the better one.
    """
    others = sorted((r for r in rates if r != best), key=lambda r: abs(math.log(r / best)))
    below = next((r for r in others if r < best), None)
    above = next((r for r in others if r > best), None)
    sides = [r for r in (below, above) if r is not None]
    gaps = {r: round(abs(math.log(r / best)), 6) for r in sides}
    chosen = max(sides, key=lambda r: (gaps[r], rates[r]))
    return math.sqrt(best * chosen)
