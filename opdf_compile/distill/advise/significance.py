"""Paired statistics over a handful of seeds: interval, tests, and seeds needed to see a difference.

The interval and its p-value are Student's, which is exact for normal differences and close for
others. Scores that are counted on few examples can have differences that are all equal, which is
no certainty: then flips are counted. The sign-flip test assumes only that a difference is as likely
to be negative as positive when the methods are equal; it is the check on the t test. With n seeds
it cannot go below 2 / 2^n.

Where several comparisons are made at once, Holm's correction keeps the chance that any of them
shows a difference that is none at 5 %, however they depend on each other.

Sources: Student (1908); Fisher, The Design of Experiments (1935), section 21, for the flips; Holm,
A Simple Sequentially Rejective Multiple Test Procedure (1979).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist, fmean, stdev

import numpy as np

from opdf_compile.parity import t_below, t_quantile

CONFIDENCE = 0.95
POWER = 0.8
# All flips of up to 14 differences are counted, of more so many are drawn.
_MOST_EXACT = 14
_DRAWS = 20_000
_MOST_SEEDS = 100_000
# Of the mean: equal differences of scores have a spread of rounding.
_SAME = 1e-9


@dataclass(frozen=True)
class Paired:
    """What paired differences say about their mean.

    Attributes:
        differences: One per seed.
        mean: Their mean.
        low: Lower end of the 95 % interval; minus infinity for one seed.
        high: Upper end.
        p_t: Two-sided p-value of the paired t test.
        p_sign_flip: Two-sided p-value of the sign-flip test.
        seeds_needed: Seeds with which a true difference of this size would be seen in 8 of 10
            repetitions; None where the size or the spread is zero or unknown.
    """

    differences: tuple[float, ...]
    mean: float
    low: float
    high: float
    p_t: float
    p_sign_flip: float
    seeds_needed: int | None


def paired(differences: Sequence[float]) -> Paired:
    """The statistics of finite differences, at least one."""
    values = tuple(differences)
    mean, count = fmean(values), len(values)
    if count < 2:
        return Paired(values, mean, -math.inf, math.inf, 1.0, 1.0, None)
    spread = stdev(values)
    half = t_quantile(1 - (1 - CONFIDENCE) / 2, count - 1) * spread / math.sqrt(count)
    return Paired(
        values,
        mean,
        mean - half,
        mean + half,
        _p_t(values, mean, spread),
        sign_flip(values),
        seeds_needed(mean, spread),
    )


def _p_t(values: Sequence[float], mean: float, spread: float) -> float:
    if spread <= _SAME * abs(mean):
        return sign_flip(values)
    count = len(values)
    return 2 * (1 - t_below(abs(mean) / spread * math.sqrt(count), count - 1))


@dataclass(frozen=True)
class Duel:
    """Two methods' scores on the same seeds.

    Attributes:
        ours: The metric of one, a score per seed; None where its run diverged.
        theirs: Of the other.
        higher_is_better: Which way is up.
    """

    ours: tuple[float | None, ...]
    theirs: tuple[float | None, ...]
    higher_is_better: bool

    @cached_property
    def comparison(self) -> Paired | None:
        """Ours minus theirs, positive where ours is better, over the seeds where none diverged."""
        sign = 1 if self.higher_is_better else -1
        pairs = zip(self.ours, self.theirs, strict=True)
        gaps = [sign * (a - b) for a, b in pairs if a is not None and b is not None]
        return paired(gaps) if gaps else None

    @property
    def diverged(self) -> bool:
        """Whether any run did."""
        return None in self.ours or None in self.theirs

    @property
    def wins(self) -> tuple[int, int]:
        """Seeds that ours won and lost; ties count for neither."""
        pairs = zip(self.ours, self.theirs, strict=True)
        merits = [(self._merit(a), self._merit(b)) for a, b in pairs]
        return sum(a > b for a, b in merits), sum(a < b for a, b in merits)

    @property
    def p(self) -> float:
        """Two-sided p-value of the paired t test.

        A run that diverged has no place in a mean, but it has lost: then wins are counted.
        """
        found = self.comparison
        return sign_test(*self.wins) if self.diverged or found is None else found.p_t

    @property
    def direction(self) -> int:
        """1 where ours is ahead, -1 where it is behind, 0 at a tie."""
        found = self.comparison
        if self.diverged or found is None:
            wins, losses = self.wins
            return (wins > losses) - (wins < losses)
        return (found.mean > 0) - (found.mean < 0)

    def shown(self, p: float | None = None) -> int:
        """`direction` where a p-value, the duel's own or a corrected one, is below 5 %; else 0."""
        return self.direction if (self.p if p is None else p) < 1 - CONFIDENCE else 0

    def _merit(self, score: float | None) -> float:
        if score is None:
            return -math.inf
        return score if self.higher_is_better else -score


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for being so many: p_(k) becomes max over j <= k of (m - j + 1) p_(j)."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = largest
    return corrected


def sign_flip(differences: Sequence[float]) -> float:
    """The share of sign flips whose mean is as far from zero as the mean found."""
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    # Sums in another order differ in their last bits.
    found = abs(values.sum()) * (1 - 1e-9)
    if count <= _MOST_EXACT:
        flips = (np.arange(2**count)[:, None] >> np.arange(count)) % 2
        return float(np.mean(abs((2 * flips - 1) @ values) >= found))
    flips = np.random.default_rng(0).integers(2, size=(_DRAWS, count))
    hits = int(np.sum(abs((2 * flips - 1) @ values) >= found))
    # The found signs are one of the flips, so no p-value is zero.
    return (hits + 1) / (_DRAWS + 1)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of so many wins and losses where both are equally likely."""
    count = wins + losses
    tail: float = sum(math.comb(count, k) for k in range(min(wins, losses) + 1)) / 2**count
    return min(1.0, 2 * tail)


def seeds_needed(mean: float, spread: float) -> int | None:
    """Seeds at which the t test sees a true difference of `mean` with a power of 80 %.

    n = ((t(n - 1) + z) spread / mean)^2, the smallest n that is at least its own right side.
    """
    if mean == 0 or spread == 0 or not math.isfinite(mean * spread):
        return None
    z, ratio = NormalDist().inv_cdf(POWER), spread / mean
    least = max(3, math.ceil(((NormalDist().inv_cdf(0.975) + z) * ratio) ** 2))
    if least > _MOST_SEEDS:
        return least
    for count in itertools.count(least):
        if count >= ((t_quantile(0.975, count - 1) + z) * ratio) ** 2:
            return count
    raise AssertionError("counting never ends")
