"""Paired comparisons over seeds, and what several tasks do to them.

d[s] = score of a method with seed s - score of its baseline with the same seed (the same start
weights, the same order of the data)

mean d +- t_{1 - a/2, S - 1} sd(d) / sqrt(S)       the interval of Student's paired t
p_sign_flip = share of sign patterns e in {-1, 1}^S with |mean(e d)| >= |mean d|

The sign-flip test assumes only that d is symmetric around zero where nothing differs. A percentile
bootstrap is not used: of 8 seeds its 95 % interval covers 88 %.

Holm (1979) orders the p-values of the m tasks and tests the j-th smallest at a / (m - j + 1), as
long as all smaller ones are rejected. The interval of a task is the t interval at the level at
which Holm tests it, so that it leaves zero out exactly where Holm rejects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from opdf_compile.errors import InputError

ALPHA = 0.05
# All sign patterns up to here, a fixed number of random ones beyond.
_EXACT = 16
_DRAWS = 2**15
_MOST_SEEDS = 10_000
# Of the mean: equal differences of scores have a spread of rounding.
_SAME = 1e-9


class Comparison(NamedTuple):
    """A method against its baseline on one task.

    Attributes:
        difference: Mean of the paired differences.
        ci_low: Lower end of the interval at level 1 - alpha.
        ci_high: Upper end.
        p_t: Two-sided p-value of the paired t test.
        p_sign_flip: Two-sided p-value of the sign-flip test.
        seeds: Number of pairs.
        spread: Standard deviation of the differences.
    """

    difference: float
    ci_low: float
    ci_high: float
    p_t: float
    p_sign_flip: float
    seeds: int
    spread: float


def compare(
    scores: Sequence[float], baseline: Sequence[float], *, alpha: float = ALPHA
) -> Comparison:
    """Both tests and the t interval of scores that are paired by seed.

    Args:
        scores: Of the method, one per seed.
        baseline: Of its rival, in the same order of seeds.
        alpha: 1 - level of the interval.

    Raises:
        InputError: The two differ in length, there are fewer than two, or one is not finite.
    """
    difference = _differences(scores, baseline)
    mean, spread = float(difference.mean()), float(difference.std(ddof=1))
    p_t, p_flip = paired_t(difference), sign_flip(difference)
    found = Comparison(mean, mean, mean, p_t, p_flip, len(difference), spread)
    low, high = _interval_of(found, alpha)
    return found._replace(ci_low=low, ci_high=high)


def _interval_of(found: Comparison, alpha: float) -> tuple[float, float]:
    """The interval that leaves zero out where the p-value is at most alpha, and only there.

    Differences that are all equal have no spread to make one of: then it is the whole line or the
    difference alone.
    """
    if found.spread > _SAME * abs(found.difference):
        return interval(found.difference, found.spread, found.seeds, alpha)
    shown = found.p_t <= alpha or found.difference == 0
    return (found.difference, found.difference) if shown else (-math.inf, math.inf)


def interval(mean: float, spread: float, seeds: int, alpha: float) -> tuple[float, float]:
    """The two-sided t interval of a mean at level 1 - alpha."""
    from scipy import stats

    half = float(stats.t.ppf(1 - alpha / 2, seeds - 1)) * spread / math.sqrt(seeds)
    return mean - half, mean + half


def paired_t(difference: NDArray[np.float64]) -> float:
    """Two-sided p-value; where all differences are equal, that of the sign-flip test.

    Scores are counts over few examples, whose equal differences are no certainty.
    """
    from scipy import stats

    spread = float(difference.std(ddof=1))
    mean = float(difference.mean())
    if spread <= _SAME * abs(mean):
        return sign_flip(difference)
    statistic = mean / (spread / math.sqrt(len(difference)))
    return float(2 * stats.t.sf(abs(statistic), len(difference) - 1))


def sign_flip(difference: NDArray[np.float64]) -> float:
    """Two-sided p-value: exact for up to 16 pairs, else of 32,768 drawn patterns.

    The observed pattern counts as one of the drawn ones, which keeps the test valid.
    """
    count = len(difference)
    if count <= _EXACT:
        patterns = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    else:
        patterns = np.random.default_rng(0).integers(2, size=(_DRAWS, count))
    means = np.abs((2.0 * patterns - 1.0) @ difference)
    observed = abs(float(difference.sum()))
    # Equal sums differ by rounding, which must not decide whether a pattern counts.
    extreme = int((means >= observed * (1 - 1e-12) - 1e-300).sum())
    if count <= _EXACT:
        return extreme / len(means)
    return (extreme + 1) / (len(means) + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: rejected are those up to alpha."""
    order = np.argsort(np.asarray(p_values, dtype=np.float64), kind="stable")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted


def holm_levels(p_values: Sequence[float], *, alpha: float = ALPHA) -> list[float]:
    """The alpha at which Holm tests each hypothesis, in the order given.

    After the first that is not rejected all later ones keep its alpha: none of them is rejected.
    """
    order = np.argsort(np.asarray(p_values, dtype=np.float64), kind="stable")
    levels = [0.0] * len(p_values)
    remaining, rejecting = len(p_values), True
    for place in order:
        levels[place] = alpha / remaining
        rejecting = rejecting and p_values[place] <= alpha / remaining
        remaining -= rejecting
    return levels


def holm_family(comparisons: Sequence[Comparison], *, alpha: float = ALPHA) -> list[Comparison]:
    """The comparisons with the intervals at which Holm tests them (see the top)."""
    levels = holm_levels([c.p_t for c in comparisons], alpha=alpha)
    adjusted = []
    for comparison, level in zip(comparisons, levels, strict=True):
        low, high = _interval_of(comparison, level)
        adjusted.append(comparison._replace(ci_low=low, ci_high=high))
    return adjusted


def power(effect: float, spread: float, seeds: int, *, alpha: float = ALPHA) -> float:
    """The chance that a two-sided paired t test finds a true difference.

    Args:
        effect: The true mean difference.
        spread: The standard deviation of the differences.
        seeds: Number of pairs, two or more.
        alpha: Of the test.
    """
    from scipy import stats

    shift = abs(effect) / spread * math.sqrt(seeds)
    edge = stats.t.ppf(1 - alpha / 2, seeds - 1)
    above, below = stats.nct.sf(edge, seeds - 1, shift), stats.nct.cdf(-edge, seeds - 1, shift)
    return float(above + below)


def seeds_for(effect: float, spread: float, *, wanted: float = 0.8, alpha: float = ALPHA) -> int:
    """The fewest seeds with which `power` reaches what is wanted.

    Raises:
        InputError: The effect or the spread is not positive, or more than 10,000 would be needed.
    """
    if not (effect > 0 and spread > 0):
        raise InputError(f"effect and spread must be positive, found {effect!r} and {spread!r}")
    low, high = 2, 2
    while power(effect, spread, high, alpha=alpha) < wanted:
        low, high = high, 2 * high
        if high > _MOST_SEEDS:
            raise InputError(
                f"a difference of {effect:g} with a spread of {spread:g} would need more than "
                f"{_MOST_SEEDS} seeds; look for a larger one"
            )
    while low < high:
        middle = (low + high) // 2
        enough = power(effect, spread, middle, alpha=alpha) >= wanted
        low, high = (low, middle) if enough else (middle + 1, high)
    return high


def _differences(scores: Sequence[float], baseline: Sequence[float]) -> NDArray[np.float64]:
    if len(scores) != len(baseline) or len(scores) < 2:
        raise InputError(
            f"{len(scores)} and {len(baseline)} scores cannot be compared, wanted the same two or "
            "more seeds on both sides"
        )
    difference = np.asarray(scores, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    if not np.isfinite(difference).all():
        raise InputError("a score is NaN or infinite; leave out no seed, find out why it diverged")
    return difference


@dataclass(frozen=True)
class Corrected:
    """A method against its baseline on one task of a family; `ci_low` and `ci_high` are Holm's.

    Attributes:
        score: Mean of the method.
        baseline_score: Mean of the baseline.
        difference: Of the two.
        ci_low: Lower end of Holm's interval.
        ci_high: Its upper end.
        ci95_low: Lower end of the interval of this task alone.
        ci95_high: Its upper end.
        p_t: Of the paired t test.
        p_sign_flip: Of the sign-flip test.
        p_holm: `p_t` after Holm.
        spread: Standard deviation of the differences.
        family: Number of tasks of the family.
        seeds: Number of pairs.
    """

    score: float
    baseline_score: float
    difference: float
    ci_low: float
    ci_high: float
    ci95_low: float
    ci95_high: float
    p_t: float
    p_sign_flip: float
    p_holm: float
    spread: float
    family: int
    seeds: int


def corrected(
    family: Sequence[tuple[Sequence[float], Sequence[float]]], *, alpha: float = ALPHA
) -> list[Corrected]:
    """Compare the tasks of a family, and correct over them.

    Args:
        family: Of each task the scores and those of the baseline, paired by seed.
        alpha: Level of the family.
    """
    alone = [compare(ours, theirs, alpha=alpha) for ours, theirs in family]
    holms = holm_family(alone, alpha=alpha)
    adjusted = holm([c.p_t for c in alone])
    return [
        Corrected(
            score=sum(ours) / len(ours),
            baseline_score=sum(theirs) / len(theirs),
            difference=own.difference,
            ci_low=held.ci_low,
            ci_high=held.ci_high,
            ci95_low=own.ci_low,
            ci95_high=own.ci_high,
            p_t=own.p_t,
            p_sign_flip=own.p_sign_flip,
            p_holm=p,
            spread=own.spread,
            family=len(family),
            seeds=own.seeds,
        )
        for (ours, theirs), own, held, p in zip(family, alone, holms, adjusted, strict=True)
    ]
