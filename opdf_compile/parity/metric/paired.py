"""Non-inferiority of paired scores: an interval of the mean difference, and what it decides.

d[i] = candidate - baseline on row i, n rows, mean m, central sums S2 = sum (d - m)^2 and
S3 = sum (d - m)^3. The two-sided 90 % interval, which errs in 5 % of cases at either end, is::

    m + (2 z^2 + 1) / 6 * S3 / (S2 + c h^2) / n  -+  ( t sqrt((S2 + c h^2) / (n (n - 1))) + h / 2n )

z and t are the 95 % quantiles of the normal distribution and of Student's with n - 1 degrees of
freedom; the first term is the correction for skew of Johnson and of Hall. Where no row ties, h is
0 and the rest is the t interval. Scores that tie (right or wrong, a rank, a count) differ in few
rows by whole steps, and the spread of few steps says little: where 0.5 % of rows turn wrong, 36 %
of all draws of 200 rows show no change, and t would be sure of it. There h is the largest step,
h / 2n the correction for continuity, and c is such that n rows without a change leave room for
-ln(0.05) / n of them, the rule of three. For counts in one direction this is the exact binomial
limit to two digits; over 10 to 3,000 rows and all rates up to 40 % its error is at most 5 %.

A metric that gives one number for all rows has the same interval. S2 is n^2 times the variance of
the difference over resampled rows (with replacement, the same for both sides). S3 and h come from
leaving rows out: where a part g of them is, the difference moves to d[-g], and the rows of g pull
by (n - n[g]) (d - d[-g]), for a mean the sum of their d[i] - m. S3 is the sum of the cubes, h the
largest pull. Nothing says whether rows tie, so the room of h is always given: of scores without
ties the interval is 41 % too wide at 20 rows, 11 % at 200.

Source: Johnson, Modified t tests and confidence intervals for asymmetrical populations (1978);
Hall, On the removal of skewness by transformation (1992); Hanley & Lippman-Hand, If nothing goes
wrong, is everything all right? (1983); Efron & Tibshirani, An Introduction to the Bootstrap (1993),
chapters 6 and 11, for the spread over resampled rows and for leaving rows out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from opdf_compile.parity.latency.ratio_interval import FINAL_LEVEL, Decision
from opdf_compile.parity.latency.student_t import t_quantile
from opdf_compile.parity.metric.function import Numbers

_AT = (1.0 + FINAL_LEVEL) / 2.0
_Z = NormalDist().inv_cdf(_AT)
# c above: z sqrt(c) + 1/2 = -ln(0.05).
_UNSEEN = ((-math.log(1.0 - _AT) - 0.5) / _Z) ** 2
# From here on t is z to six digits.
_MOST_FREEDOM = 1_000_000
_MOST_ROWS = 1 << 40
_Interval = Callable[[int], tuple[float, float]]


@dataclass(frozen=True)
class Claim:
    """What is to be shown of a candidate: that it is not worse by more than a margin.

    Attributes:
        margin: In the metric's own unit, above 0.
        higher_is_better: Whether more is better.
    """

    margin: float
    higher_is_better: bool = True

    def decide(self, low: float, high: float) -> Decision:
        """The verdict on an interval of candidate - baseline."""
        worst, best = (low, high) if self.higher_is_better else (-high, -low)
        if worst >= -self.margin:
            return "pass"
        return "fail" if best < -self.margin else "inconclusive"


@dataclass(frozen=True)
class PairedDifference:
    """A candidate against one baseline on the same rows.

    Attributes:
        verdict: What the interval decides.
        difference: Candidate - baseline.
        low: Lower end of its 90 % interval; minus infinity where nothing can be said.
        high: Upper end.
        needed: Rows that would decide, were mean and spread those that were seen; None where the
            rows decide, or where no number of rows can be told.
    """

    verdict: Decision
    difference: float
    low: float
    high: float
    needed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The values under the report's keys."""
        return {
            "verdict": self.verdict,
            "difference": self.difference,
            "ci_low": self.low,
            "ci_high": self.high,
            "needed": self.needed,
        }


def compare_rows(
    candidate: Numbers, baseline: Numbers, claim: Claim, *, alike: bool
) -> PairedDifference:
    """Judge scores of the same rows.

    Args:
        candidate: Shape (rows,).
        baseline: Likewise.
        claim: What is to be shown.
        alike: Whether both compute the same outputs there but for rounding, so that equal scores
            need no luck.
    """
    differences = candidate - baseline
    rows, mean = len(differences), float(differences.mean())
    off = differences - mean
    squares, cubes = float((off**2).mean()), float((off**3).mean())
    if not differences.any() and alike:
        return _judged(mean, rows, lambda count: (mean, mean), claim)
    step = _step(differences, np.concatenate([candidate, baseline]))

    # A single row tells no spread, however many there might be.
    known = rows > 1 and not math.isinf(step)
    return _judged(mean, rows, _interval(mean, squares, cubes, step) if known else _open, claim)


def compare_draws(
    difference: float, draws: Numbers, pulls: Numbers, rows: int, claim: Claim, *, alike: bool
) -> PairedDifference:
    """Judge two numbers by how their difference moves with the rows.

    Args:
        difference: Candidate - baseline on all rows.
        draws: The same on each resampling.
        pulls: By part of the rows, (n - n[g]) (d - d[-g]) as above.
        rows: How many rows there are.
        claim: What is to be shown.
        alike: As in `compare_rows`.
    """
    # Draws that never move tell no spread, nor does a single row.
    if rows < 2 or not np.ptp(draws):
        sure = alike and not difference
        return _judged(difference, rows, (lambda count: (0.0, 0.0)) if sure else _open, claim)
    squares, cubes = rows * float(draws.var()), float((pulls**3).sum()) / rows
    step = float(np.abs(pulls).max())
    return _judged(difference, rows, _interval(difference, squares, cubes, step), claim)


def _interval(mean: float, squares: float, cubes: float, step: float) -> _Interval:
    """The interval above by the number of rows, of means over the rows of (d - m)^2 and ^3."""

    def of(count: int) -> tuple[float, float]:
        spread = squares * count + _UNSEEN * step**2
        skew = (2 * _Z**2 + 1) / 6 * cubes / spread if spread else 0.0
        half = _t(count) * math.sqrt(spread / (count * (count - 1))) + step / (2 * count)
        return mean + skew - half, mean + skew + half

    return of


def _open(count: int) -> tuple[float, float]:
    return -math.inf, math.inf


def _step(differences: Numbers, scores: Numbers) -> float:
    """The largest change that a row may hide which shows none; infinite where no score tells."""
    if differences.all():
        return 0.0
    if differences.any():
        return float(np.abs(differences).max())
    return float(scores.max(initial=0.0) - scores.min(initial=0.0)) or math.inf


def _t(rows: int) -> float:
    return t_quantile(_AT, min(rows - 1, _MOST_FREEDOM))


def _judged(difference: float, rows: int, interval: _Interval, claim: Claim) -> PairedDifference:
    low, high = interval(rows)
    verdict = claim.decide(low, high)
    needed = None
    if verdict == "inconclusive":
        needed = _needed(lambda count: claim.decide(*interval(count)) != "inconclusive", rows)
    return PairedDifference(verdict, difference, low, high, needed)


def _needed(decided: Callable[[int], bool], rows: int) -> int | None:
    """The least number of rows that decides."""
    enough = rows
    while not decided(enough):
        if enough > _MOST_ROWS:
            return None
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if decided(middle) else (middle, enough)
    return enough
