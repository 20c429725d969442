"""The interval covers what it should, and the rules decide as the design says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from opdf_compile.parity.latency.ratio_interval import (
    EARLY_LEVEL,
    Interval,
    LatencyRule,
    bootstrap,
    decide,
    location,
)

TRIALS = 400


def draw(
    rng: np.random.Generator, sessions: int, blocks: int, between: float, within: float
) -> np.ndarray:
    effects = rng.normal(0.0, between, (sessions, 1))
    return math.log(1.02) + effects + rng.normal(0.0, within, (sessions, blocks))


def coverage(level: float, sessions: int, blocks: int, between: float, within: float) -> float:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(TRIALS):
        spread = bootstrap(draw(rng, sessions, blocks, between, within), rng, draws=400)
        interval = spread.interval(level)
        hits += interval.low <= 1.02 <= interval.high
    return hits / TRIALS


@pytest.mark.parametrize(
    ("sessions", "blocks", "between", "within"),
    [
        (3, 12, 0.01, 0.02),
        (4, 12, 0.0, 0.03),
        pytest.param(*(4, 12, 0.02, 0.01), marks=pytest.mark.slow),
        pytest.param(*(6, 12, 0.01, 0.03), marks=pytest.mark.slow),
        (6, 12, 0.02, 0.005),
        (13, 6, 0.0, 0.02),
        pytest.param(*(20, 6, 0.005, 0.03), marks=pytest.mark.slow),
    ],
)
def test_the_interval_covers_the_truth_in_nine_of_ten_cases(
    sessions: int, blocks: int, between: float, within: float
) -> None:
    """From 87 to 93 %, with three standard errors of a binomial on either side."""
    allowed = 3 * math.sqrt(0.9 * 0.1 / TRIALS)
    found = coverage(0.90, sessions, blocks, between, within)
    assert 0.87 - allowed <= found <= 0.93 + allowed


def test_an_early_look_covers_more() -> None:
    assert coverage(EARLY_LEVEL, 6, 12, 0.02, 0.005) >= 0.99 - 3 * math.sqrt(0.99 * 0.01 / TRIALS)


def test_the_interval_is_not_needlessly_long() -> None:
    """With many sessions it is as long as the textbook says, 2 * 1.645 * standard error."""
    rng = np.random.default_rng(3)
    lengths = []
    for _ in range(30):
        interval = bootstrap(draw(rng, 40, 12, 0.02, 0.0), rng).interval()
        lengths.append(math.log(interval.high / interval.low))
    assert np.mean(lengths) == pytest.approx(2 * 1.645 * 0.02 / math.sqrt(40), rel=0.2)


def test_a_bootstrap_of_blocks_alone_would_be_caught() -> None:
    """The coverage test can fail: treating all blocks as independent misses far more often."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(TRIALS):
        values = draw(rng, 6, 12, 0.02, 0.005).ravel()
        half = 1.645 * values.std() / math.sqrt(values.size)
        hits += abs(values.mean() - math.log(1.02)) <= half
    assert hits / TRIALS < 0.6


def test_equal_seeds_give_equal_intervals() -> None:
    values = draw(np.random.default_rng(0), 5, 10, 0.01, 0.01)
    first, second = (bootstrap(values, np.random.default_rng(1)).interval() for _ in range(2))
    assert first == second


def test_one_session_decides_nothing() -> None:
    interval = bootstrap(np.full((1, 9), math.log(3.0)), np.random.default_rng(0)).interval()
    assert (interval.low, interval.high) == (0.0, math.inf)
    assert interval.ratio == pytest.approx(3.0)


def test_constant_ratios_give_an_interval_of_no_length() -> None:
    interval = bootstrap(np.full((4, 9), math.log(1.1)), np.random.default_rng(0)).interval()
    assert interval.low == pytest.approx(1.1) == interval.high


def test_location_ignores_spikes() -> None:
    quiet = np.zeros(20)
    spiked = quiet.copy()
    spiked[:4] = 50.0
    assert location(spiked) == pytest.approx(0.0)
    assert location(np.array([1.0, 2.0, 6.0])) == pytest.approx(3.0)


QUIET, NOISY = (0.99, 1.01), (0.90, 1.10)


@pytest.mark.parametrize(
    ("rule", "main", "control", "verdict"),
    [
        # no-slower: only the upper side counts.
        ("no-slower", (0.98, 1.02), QUIET, "pass"),
        ("no-slower", (0.50, 0.60), QUIET, "pass"),
        ("no-slower", (1.02, 1.05), QUIET, "pass"),
        ("no-slower", (1.02, 1.06), QUIET, "inconclusive"),
        ("no-slower", (1.05, 1.08), QUIET, "inconclusive"),
        ("no-slower", (1.06, 1.08), QUIET, "fail"),
        # equal: both sides.
        ("equal", (0.96, 1.04), QUIET, "pass"),
        ("equal", (0.50, 0.60), QUIET, "fail"),
        ("equal", (0.94, 1.00), QUIET, "inconclusive"),
        ("equal", (1.00, 1.06), QUIET, "inconclusive"),
        ("equal", (1.06, 1.08), QUIET, "fail"),
        # A control that does not fit the margin never lets anything pass.
        ("no-slower", (0.98, 1.02), NOISY, "inconclusive"),
        ("no-slower", (0.50, 0.60), NOISY, "inconclusive"),
        ("equal", (0.98, 1.02), NOISY, "inconclusive"),
        ("no-slower", (0.98, 1.02), (0.94, 1.00), "inconclusive"),
        # It hides a slowdown of its own size, and not one that is far beyond it.
        ("no-slower", (1.08, 1.14), NOISY, "inconclusive"),
        ("no-slower", (1.30, 1.60), NOISY, "fail"),
        ("equal", (0.90, 0.93), NOISY, "inconclusive"),
        ("equal", (0.50, 0.60), NOISY, "fail"),
        # A control that found a difference between equal files vouches for no verdict near it.
        ("no-slower", (1.20, 1.25), (1.18, 1.22), "inconclusive"),
        ("no-slower", (0.98, 1.02), (0.0, math.inf), "inconclusive"),
        ("no-slower", (9.0, 9.9), (0.0, math.inf), "inconclusive"),
    ],
)
def test_rules(
    rule: LatencyRule, main: tuple[float, float], control: tuple[float, float], verdict: str
) -> None:
    intervals = [Interval(math.sqrt(max(low, 0.1)), low, high) for low, high in (main, control)]
    assert decide(intervals[0], intervals[1], margin=0.05, rule=rule) == verdict


def test_a_clear_early_verdict_is_the_final_one() -> None:
    """The 90 % interval lies inside the 99 % interval, so no look can contradict the report."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        spread = bootstrap(draw(rng, 5, 10, 0.01, 0.02), rng)
        narrow, wide = spread.interval(), spread.interval(EARLY_LEVEL)
        assert wide.low <= narrow.low <= narrow.ratio <= narrow.high <= wide.high
