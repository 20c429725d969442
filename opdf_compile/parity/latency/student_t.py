"""Student's t distribution, for degrees of freedom that need not be whole.

    P(T > t) = I(f / (f + t^2); f / 2, 1 / 2) / 2      for t > 0

I is the regularised incomplete beta function. numpy has neither, and scipy is no dependency.

Source: Student (1908); NIST Digital Library of Mathematical Functions, 8.17.22, for the continued
fraction; Lentz (1976) for its evaluation from the front.
"""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

_EXACT = 1e-15
_NO_ZERO = 1e-300


def t_below(value: float, freedom: float) -> float:
    """P(T <= value) with so many degrees of freedom."""
    tail = _incomplete_beta(freedom / (freedom + value * value), freedom / 2, 0.5) / 2
    return tail if value < 0 else 1 - tail


def t_quantile(probability: float, freedom: float) -> float:
    """The value below which t lies with this probability.

    Args:
        probability: Above 0 and below 1.
        freedom: Degrees of freedom, at least 1.
    """
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    half = (freedom + 1) / 2
    scale = math.exp(math.lgamma(half) - math.lgamma(freedom / 2)) / math.sqrt(math.pi * freedom)
    # t has the heavier tails, so its quantile is right of the normal one; there its distribution
    # function is concave, and Newton's steps never go too far.
    value = NormalDist().inv_cdf(probability)
    while True:
        density = scale * math.pow(1 + value * value / freedom, -half)
        step = (probability - t_below(value, freedom)) / density
        value += step
        if step <= 1e-12 * value:
            return value


def _incomplete_beta(x: float, a: float, b: float) -> float:
    if x in (0.0, 1.0):
        return x
    # The fraction converges fast on this side; the other one is its mirror image.
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    logs = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logs + a * math.log(x) + b * math.log1p(-x)) / a
    fraction, above, below = 1.0, 1.0, 0.0
    for place in itertools.count(1):
        m = place // 2
        if place % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        below = 1 / ((1 + term * below) or _NO_ZERO)
        above = (1 + term / above) or _NO_ZERO
        fraction *= above * below
        if abs(above * below - 1) < _EXACT:
            break
    return front / fraction
