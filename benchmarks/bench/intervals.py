"""The median of paired ratios, with an interval.

Round b gives the ratio r[b] = t_form[b] / t_plain[b]; the estimate is the median over rounds,
which one disturbed round does not move. The interval is a bootstrap over rounds of the log-
median, with the corrections that few rounds need and `opdf_compile.parity.latency.ratio_interval`
makes too: deviations are stretched by sqrt(n / (n - 1)), because drawing n of n shrinks a spread,
and by t / z at n - 1 degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from opdf_compile.errors import InputError
from opdf_compile.parity.latency.ratio_interval import FINAL_LEVEL, Interval, Spread

_DRAWS = 4000


def paired(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """The ratio of each round.

    Raises:
        InputError: The two have different numbers of rounds.
    """
    if len(numerator) != len(denominator):
        raise InputError(
            f"{len(numerator)} and {len(denominator)} rounds cannot be paired; time both in each"
        )
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def median_interval(
    ratios: Sequence[float], rng: np.random.Generator, *, level: float = FINAL_LEVEL
) -> Interval:
    """The median of positive ratios and its two-sided bootstrap interval.

    Args:
        ratios: One per round, in any order.
        rng: Where the resampling takes its chance from.
        level: Of the interval.

    Returns:
        With fewer than two rounds the interval is (0, inf): one round says nothing about the next.

    Raises:
        InputError: There are no ratios, or one is not positive.
    """
    values = np.asarray(ratios, dtype=np.float64)
    if not len(values) or not (values > 0).all():
        raise InputError(f"ratios of times are positive numbers, found {list(ratios)}")
    logs = np.log(values)
    count = len(logs)
    centre = float(np.median(logs))
    if count < 2:
        return Spread(centre, np.zeros(1), 1).interval(level)
    drawn = np.median(logs[rng.integers(count, size=(_DRAWS, count))], axis=1)
    deviations = np.sort(drawn - centre) * math.sqrt(count / (count - 1))
    return Spread(centre, deviations, count).interval(level)
