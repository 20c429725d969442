"""Trials: learning rate, decay and momentum, the same number of them for every method.

A first round covers a wide grid. Each later round is a small grid around the best trial so far, so
that it follows a method wherever its best lies. Every method gets the same rounds.

Axes are chosen so that they depend on each other little, and all are logarithmic:
rate       SGD: lr / (1 - momentum), the length of steps once momentum has built up. AdamW: lr
decay      lr weight_decay, what decay takes from a weight in one step at the peak rate; up to 1e-4
           is no decay worth the name (0.6 % over 120 steps) and counts as none at all
momentum   1 - momentum
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RATES = {
    "sgd": tuple(0.01 * 4**k for k in range(6)),
    "adamw": tuple(0.0005 * 4**k for k in range(5)) + (0.0005 * 4**4.5,),
}
DECAYS = (0.0, 2e-3, 2e-2)
LAGS = (0.2, 0.05)
_LEAST_DECAY = 1e-4
_STEPS = {"rate": 2.0, "decay": 10**0.5, "lag": 2.0}


@dataclass(frozen=True, order=True)
class Trial:
    """One setting of a run.

    Attributes:
        rate: See the top.
        decay: lr weight_decay.
        lag: 1 - momentum.
    """

    rate: float
    decay: float
    lag: float

    def learning_rate(self, optimizer: str) -> float:
        """The optimizer's own lr."""
        return self.rate * self.lag if optimizer == "sgd" else self.rate

    @property
    def momentum(self) -> float:
        """The optimizer's own momentum, or first beta."""
        return 1 - self.lag


def first_round(optimizer: str) -> list[Trial]:
    """36 trials, the same for every method."""
    return [Trial(*values) for values in itertools.product(RATES[optimizer], DECAYS, LAGS)]


def later_round(best: Trial) -> list[Trial]:
    """27 trials around the best so far, which is tried again with the round's seeds."""
    rates = [best.rate * _STEPS["rate"] ** k for k in (-1, 0, 1)]
    centre = max(best.decay, _LEAST_DECAY * _STEPS["decay"])
    decays = [centre * _STEPS["decay"] ** k for k in (-1, 0, 1)]
    lags = [min(1.0, best.lag * _STEPS["lag"] ** k) for k in (-1, 0, 1)]
    if best.lag == 1.0:
        lags = [1.0, 0.5, 0.25]
    decays = [0.0 if decay <= _LEAST_DECAY * 1.001 else decay for decay in decays]
    return [Trial(*values) for values in itertools.product(rates, decays, lags)]


def best_of(merits: Mapping[Trial, tuple[float, float]]) -> Trial:
    """The highest accuracy; of equal ones the lowest KL.

    Args:
        merits: (validation accuracy, validation KL), means over the tuning seeds.
    """
    return max(merits, key=lambda trial: (merits[trial][0], -merits[trial][1], trial))


def edges(best: Trial, tried: Sequence[Trial]) -> list[str]:
    """The axes on which the best lies at the edge of all that was tried; natural ends are none."""
    found = []
    rates, decays, lags = (
        [getattr(trial, axis) for trial in tried] for axis in ("rate", "decay", "lag")
    )
    if math.isclose(best.rate, min(rates)) or math.isclose(best.rate, max(rates)):
        found.append("rate")
    if best.decay > 0 and math.isclose(best.decay, max(decays)):
        found.append("decay")
    if math.isclose(best.lag, min(lags)) or (best.lag < 1 and math.isclose(best.lag, max(lags))):
        found.append("momentum")
    return found
