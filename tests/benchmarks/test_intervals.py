"""The statistics, against values worked out by hand and against simulated machines."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bench.intervals import median_interval, paired
from quick import quick

from opdf_compile.errors import InputError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_ratios_are_taken_within_a_round():
    # The machine is half as fast in the second round; the ratio is not moved by that.
    assert paired([1.5, 3.0], [1.0, 2.0]) == [1.5, 1.5]
    with pytest.raises(InputError, match="2 and 1 rounds cannot be paired"):
        paired([1.0, 2.0], [1.0])


def test_the_estimate_is_the_median_and_one_disturbed_round_does_not_move_it():
    found = median_interval([1.4, 1.5, 40.0, 1.5, 1.6], rng())
    assert found.ratio == pytest.approx(1.5)


def test_equal_rounds_leave_no_doubt():
    found = median_interval([1.25] * 6, rng())
    assert (found.low, found.ratio, found.high) == pytest.approx((1.25, 1.25, 1.25))


def test_one_round_says_nothing_about_the_next():
    found = median_interval([1.25], rng())
    assert (found.low, found.ratio, found.high) == (0.0, pytest.approx(1.25), math.inf)


def test_two_rounds_by_hand():
    """Bootstrap medians of {1, e} are log 0, 1/2, 1 with probability 1/4, 1/2, 1/4.

    So the deviations at 5 % and 95 % are -1/2 and 1/2, stretched by sqrt(2 / 1) and by t / z at one
    degree of freedom, 6.3138 / 1.6449.
    """
    found = median_interval([1.0, math.e], rng())
    reach = 0.5 * math.sqrt(2) * 6.3138 / 1.6449
    assert math.log(found.ratio) == pytest.approx(0.5)
    assert math.log(found.high) - 0.5 == pytest.approx(reach, rel=1e-3)
    assert 0.5 - math.log(found.low) == pytest.approx(reach, rel=1e-3)


@pytest.mark.parametrize("ratios", [[], [1.0, 0.0], [1.0, -2.0], [1.0, math.nan]])
def test_what_is_no_ratio_is_refused(ratios: list[float]):
    with pytest.raises(InputError, match="ratios of times are positive numbers"):
        median_interval(ratios, rng())


def coverage(rounds: int, *, pair: bool) -> tuple[float, float]:
    """How often the interval holds the true ratio 1.3, and its median length in logs.

    The machine's speed drifts by 20 % from round to round, the noise of each run is 2 %. With
    `pair` off the two runs of a ratio come from different rounds.
    """
    truth, held, lengths = 1.3, 0, []
    for trial in range(200):
        draw = rng(trial)
        drift = np.exp(0.2 * draw.standard_normal(rounds))
        plain = drift * np.exp(0.02 * draw.standard_normal(rounds))
        form = truth * drift * np.exp(0.02 * draw.standard_normal(rounds))
        if not pair:
            form = draw.permutation(form)
        found = median_interval(paired(list(form), list(plain)), draw)
        held += found.low <= truth <= found.high
        lengths.append(math.log(found.high / found.low))
    return held / 200, float(np.median(lengths))


@pytest.mark.parametrize("rounds", quick([4, 8, 15], {4}))
def test_the_interval_holds_the_truth_as_often_as_it_says(rounds: int):
    # 90 % is promised. 200 trials have a standard error of 2 %; too long is no lie, too short is.
    held, _ = coverage(rounds, pair=True)
    assert held >= 0.90 - 3 * 0.021


def test_pairing_is_what_makes_it_short():
    """The wrong way, ratios across rounds, is seen: its intervals are several times as long."""
    assert coverage(8, pair=False)[1] > 4 * coverage(8, pair=True)[1]
