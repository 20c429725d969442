"""The paired statistics, against scipy and against simulated races."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from opdf_compile.distill.advise.significance import (
    Duel,
    holm,
    paired,
    seeds_needed,
    sign_flip,
    sign_test,
)


def test_interval_and_p_are_those_of_the_paired_t_test() -> None:
    differences = np.random.default_rng(1).normal(0.3, 1.0, size=9)
    found = paired(differences.tolist())
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(0.95)
    assert found.p_t == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_sign_flips_of_three_differences_by_hand() -> None:
    # Sums of the eight flips of 1, 2, 4: +-7, +-5, +-3, +-1; two of them are as far as 7.
    assert sign_flip([1.0, 2.0, 4.0]) == 0.25
    assert sign_flip([1.0, 2.0, -4.0]) == 1.0


def test_drawn_sign_flips_agree_with_the_t_test_on_many_differences() -> None:
    differences = np.random.default_rng(2).normal(0.3, 1.0, size=40)
    drawn = sign_flip(differences.tolist())
    assert drawn == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, abs=0.02)


def test_seeds_needed_have_the_power_that_they_promise() -> None:
    """By the noncentral t distribution: 80 % at the number named, less with two fewer."""
    count = seeds_needed(0.5, 1.0)
    assert count is not None

    def power(n: int) -> float:
        limit, shift = stats.t.ppf(0.975, n - 1), 0.5 * math.sqrt(n)
        return float(stats.nct.sf(limit, n - 1, shift))

    assert power(count) >= 0.795
    assert power(count - 2) < 0.8


@pytest.mark.parametrize("count", [2, 3, 6])
def test_equal_differences_are_no_certainty(count: int) -> None:
    """0.9 - 0.85 and 0.85 - 0.8 differ in the last bits: t is about 10^15."""
    ours, theirs = (0.9, 0.85) * (count // 2) + (0.9,) * (count % 2), (0.85, 0.8) * 3
    duel = Duel(ours, theirs[:count], True)
    assert duel.p == pytest.approx(2 / 2**count)
    assert duel.shown() == (count == 6)


def test_two_seeds_scored_on_few_examples_show_nothing_by_chance() -> None:
    """Equal methods, 20 examples a seed: one duel in ten had two equal differences."""
    draws = np.random.default_rng(0).binomial(20, 0.9, (2, 1000, 2)) / 20
    shown = [Duel(tuple(a), tuple(b), True).shown() for a, b in zip(*draws.tolist(), strict=True)]
    assert sum(map(abs, shown)) <= 50


@pytest.mark.parametrize("differences", [[0.0, 0.0, 0.0], [0.5]])
def test_no_spread_or_one_seed_shows_nothing(differences: list[float]) -> None:
    found = paired(differences)
    assert found.p_t == 1.0
    assert not (found.low > 0 or found.high < 0)
    assert found.seeds_needed is None


def test_equal_differences_are_seen() -> None:
    assert paired([0.1] * 6).low > 0


def test_sign_test_agrees_with_scipy() -> None:
    for wins, losses in ((5, 0), (9, 1), (4, 6), (3, 3)):
        expected = stats.binomtest(wins, wins + losses).pvalue
        assert sign_test(wins, losses) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    """In order .01 .02 .03 .9: 4 x .01, 3 x .02, 2 x .03, .9, each no less than the one before."""
    assert holm([0.03, 0.9, 0.01, 0.02]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_a_duel_is_the_paired_test_turned_so_that_more_is_better() -> None:
    ours, theirs = (1.0, 1.2, 1.5, None), (1.1, 1.31, 1.6, 2.0)
    up, down = (Duel(ours[:3], theirs[:3], way) for way in (True, False))
    assert up.comparison is not None and up.p == pytest.approx(
        stats.ttest_rel(ours[:3], theirs[:3]).pvalue
    )
    assert (up.direction, down.direction) == (-1, 1)
    assert (up.wins, down.wins) == ((0, 3), (3, 0))
    assert down.shown() == 1 and down.shown(0.06) == 0
    # The run that diverged has lost: four losses of four.
    lost = Duel(ours, theirs, True)
    assert (lost.wins, lost.direction, lost.shown()) == ((0, 4), -1, 0)
    assert lost.p == pytest.approx(stats.binomtest(0, 4).pvalue)
