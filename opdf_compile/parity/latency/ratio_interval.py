"""The interval of a latency ratio, and what may be concluded from it.

Block b of session group s gives one paired log-ratio::

    y[s, b] = log(candidate time) - log(reference time) = mu + u[s] + e[s, b]

u is what a session drew when it was created (algorithms, memory placement), e the noise of a block.
The estimate of mu is the mean over sessions of the trimmed mean over blocks: a spike of the machine
in one block moves neither. Its interval comes from a hierarchical bootstrap (sessions, then the
blocks of each), with two corrections without which few sessions would give too short an interval
and many blocks too long a one:

- Session effects are rescaled to their unbiased variance. Resampling both levels naively counts the
  noise of blocks twice, because it is already in the spread of the session means.
- Distances from the centre are stretched by t / z, since a spread that was estimated from a handful
  of sessions is itself uncertain. Only the share of it that differs between sessions is: the noise
  of blocks is known from all blocks. So the degrees of freedom are (sessions - 1) / sqrt(share),
  after Satterthwaite, with the square root in place of his square because the share itself is
  estimated. In simulations with 3 to 20 sessions and any share, the 90 % interval covers the truth
  in 86 to 94 % of cases. Looks before the end take sessions - 1, which covers at least as much.

Source: Davison & Hinkley, Bootstrap Methods and their Application (1997), section 3.8; Carpenter,
Goldstein & Rasbash, A novel bootstrap procedure for assessing the relationship between class size
and achievement (2003), for the rescaled effects; Hesterberg, What Teachers Should Know About the
Bootstrap (2015), for t / z; Satterthwaite, An approximate distribution of estimates of variance
components (1946).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from opdf_compile.parity.latency.student_t import t_quantile

Decision = Literal["pass", "fail", "inconclusive"]
LatencyRule = Literal["no-slower", "equal"]
LATENCY_RULES: tuple[LatencyRule, ...] = ("no-slower", "equal")

FINAL_LEVEL = 0.90
# Haybittle and Peto: whoever looks before the end must see far stronger evidence, so that looking
# often does not turn noise into a verdict (a look may err in 0.5 % of cases, the last one in 5 %).
EARLY_LEVEL = 0.99
_DRAWS = 2000
# Resamplings of each session's blocks, from which the draws pick.
_POOL = 100
# Below it t is z to four digits; it keeps the division from an infinite freedom.
_LEAST_SHARE = 1e-6
_TRIM = 0.25

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A ratio with its confidence interval.

    Attributes:
        ratio: The estimate; 1 means equally fast, above 1 slower than the reference.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    ratio: float
    low: float
    high: float

    def fits(self, margin: float) -> bool:
        """Whether the whole interval lies within 1 - margin to 1 + margin."""
        return 1.0 - margin <= self.low and self.high <= 1.0 + margin


@dataclass(frozen=True)
class Spread:
    """A bootstrap distribution, from which intervals of any level are read.

    Attributes:
        centre: The estimate of mu, a log-ratio.
        deviations: Bootstrap draws of its error, sorted.
        sessions: How many sessions it stands on.
        share: Part of the variance that differs between sessions, 0 to 1.
    """

    centre: float
    deviations: _Array
    sessions: int
    share: float = 1.0

    def interval(self, level: float = FINAL_LEVEL) -> Interval:
        """The two-sided interval at `level`, as a ratio."""
        if self.sessions < 2:
            # One session says nothing about what another would have drawn.
            return Interval(math.exp(self.centre), 0.0, math.inf)
        tail = (1.0 - level) / 2.0
        share = self.share if level <= FINAL_LEVEL else 1.0
        freedom = (self.sessions - 1) / math.sqrt(max(share, _LEAST_SHARE))
        stretch = t_quantile(1.0 - tail, freedom) / NormalDist().inv_cdf(1.0 - tail)
        low, high = np.quantile(self.deviations, [tail, 1.0 - tail]) * stretch
        return Interval(
            ratio=math.exp(self.centre),
            low=math.exp(self.centre + float(low)),
            high=math.exp(self.centre + float(high)),
        )


def bootstrap(log_ratios: _Array, rng: np.random.Generator, *, draws: int = _DRAWS) -> Spread:
    """Resample sessions and their blocks; the log-ratios have the shape (sessions, blocks)."""
    sessions, blocks = log_ratios.shape
    locations = location(log_ratios)
    centre = float(locations.mean())
    if sessions < 2:
        return Spread(centre, np.zeros(1), sessions)
    chosen = rng.integers(blocks, size=(sessions, _POOL, blocks))
    resampled = location(log_ratios[np.arange(sessions)[:, None, None], chosen])
    noise = resampled - locations[:, None]
    share = _session_share(locations, float(noise.var()))
    effects = _session_effects(locations, share)
    picked = rng.integers(sessions, size=(draws, sessions))
    deviations = effects[picked] + noise[picked, rng.integers(_POOL, size=picked.shape)]
    deviations = deviations.mean(axis=1)
    return Spread(centre, np.sort(deviations), sessions, share)


def _session_share(locations: _Array, block_variance: float) -> float:
    """Part of the variance of session means that the noise of blocks does not explain."""
    observed = float(locations.var(ddof=1))
    return max(0.0, 1.0 - block_variance / observed) if observed > 0.0 else 0.0


def _session_effects(locations: _Array, share: float) -> _Array:
    """Session means around their centre, rescaled to the variance that blocks do not explain."""
    # Drawing n of n with replacement shrinks a variance by (n - 1) / n.
    small_sample = len(locations) / (len(locations) - 1)
    effects: _Array = (locations - locations.mean()) * math.sqrt(small_sample * share)
    return effects


def location(values: _Array) -> _Array:
    """Mean of the middle half along the last axis: the bulk of the blocks, without the spikes."""
    count = values.shape[-1]
    cut = int(count * _TRIM)
    if cut == 0:
        return np.asarray(values.mean(axis=-1))
    middle = np.partition(values, (cut, count - cut - 1), axis=-1)[..., cut : count - cut]
    return np.asarray(middle.mean(axis=-1))


def decide(main: Interval, control: Interval, *, margin: float, rule: LatencyRule) -> Decision:
    """Decide from the two intervals.

    The control (reference against reference) shows what the machine's noise alone produces. If even
    that does not fit the margin, nothing can pass; and a slowdown counts only where it lies beyond
    what the control shows. "no-slower" looks at one side, "equal" at both.
    """
    reach = Interval(1.0, 1.0, 1.0) if control.fits(margin) else control
    if main.low > (1.0 + margin) * max(1.0, reach.high):
        return "fail"
    if rule == "equal" and main.high < (1.0 - margin) * min(1.0, reach.low):
        return "fail"
    if not control.fits(margin):
        return "inconclusive"
    passes = main.fits(margin) if rule == "equal" else main.high <= 1.0 + margin
    return "pass" if passes else "inconclusive"


def interval_json(interval: Interval | None) -> dict[str, Any]:
    """The interval as the report writes it; null where nothing was measured."""
    if interval is None:
        return {"ratio": None, "ci_low": None, "ci_high": None}
    return {"ratio": interval.ratio, "ci_low": interval.low, "ci_high": interval.high}
