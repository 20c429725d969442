"""Tests and intervals against scipy, against simulated data, and against wrong answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from quality.rows import Scores, from_json, rows_of, to_json
from quality.statistics import (
    compare,
    holm,
    holm_family,
    holm_levels,
    interval,
    power,
    seeds_for,
    sign_flip,
)
from scipy import stats

from opdf_compile.errors import InputError


def pairs(count: int, effect: float = 0.4, seed: int = 0) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=count)
    return list(base + effect + rng.normal(size=count)), list(base)


@pytest.mark.parametrize("count", [2, 8, 24])
def test_t_test_and_interval_are_scipys(count: int) -> None:
    ours, theirs = pairs(count)
    found = compare(ours, theirs)
    wanted = stats.ttest_rel(ours, theirs)
    limits = wanted.confidence_interval(0.95)
    assert found.p_t == pytest.approx(wanted.pvalue, rel=1e-12)
    assert (found.ci_low, found.ci_high) == pytest.approx((limits.low, limits.high), rel=1e-12)


def test_exact_sign_flip_is_scipys_permutation_test() -> None:
    difference = np.subtract(*pairs(9))
    wanted = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(difference) == pytest.approx(wanted.pvalue, rel=1e-12)


def test_drawn_sign_flip_is_near_the_t_test_for_normal_differences() -> None:
    ours, theirs = pairs(40, effect=0.3)
    found = compare(ours, theirs)
    # The share of 32,768 draws has a standard error of at most 0.5 / sqrt(32768) = 0.003; the two
    # tests differ by less than that much again for 40 normal differences.
    assert abs(found.p_sign_flip - found.p_t) < 0.02
    assert 0 < found.p_sign_flip <= 1


def test_sign_flip_counts_ties_and_the_observed_pattern() -> None:
    # |+-1 +-1 +-1| = 3 in two of eight patterns, whatever the rounding of the sums.
    assert sign_flip(np.array([0.1, 0.1, 0.1])) == 2 / 8
    assert sign_flip(np.zeros(5)) == 1.0


def test_intervals_cover_and_a_percentile_bootstrap_does_not() -> None:
    """8 normal differences, 4,000 studies: the standard error of a share of 95 % is 0.34 points."""
    rng = np.random.default_rng(1)
    drawn = rng.normal(0.5, 1.0, size=(4000, 8))
    means, spreads = drawn.mean(1), drawn.std(1, ddof=1)
    limits = [interval(m, s, 8, 0.05) for m, s in zip(means, spreads, strict=True)]
    covered = np.mean([low <= 0.5 <= high for low, high in limits])
    assert abs(covered - 0.95) < 4 * 0.0034
    resampled = drawn[:, rng.integers(8, size=(500, 8))].mean(2)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=1)
    assert np.mean((low <= 0.5) & (high >= 0.5)) < 0.91


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    # 0.005 <= 0.05/4, 0.01 <= 0.05/3, 0.03 > 0.05/2: that one and all after it stay at 0.05/2.
    assert holm_levels([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.05 / 3, 0.025, 0.025, 0.0125])


@pytest.mark.parametrize("seed", range(20))
def test_an_interval_leaves_zero_out_exactly_where_holm_rejects(seed: int) -> None:
    rng = np.random.default_rng(seed)
    family = [
        compare(*pairs(12, effect, seed + k)) for k, effect in enumerate(rng.uniform(0, 1.5, 5))
    ]
    adjusted = holm_family(family)
    for comparison, p in zip(adjusted, holm([c.p_t for c in family]), strict=True):
        assert (comparison.ci_low > 0 or comparison.ci_high < 0) == (p <= 0.05)


def test_holm_keeps_the_family_wise_error() -> None:
    """Five true nulls, 2,000 families: some p at or below 0.05 in at most 5 % of them."""
    rng = np.random.default_rng(2)
    drawn = rng.normal(size=(2000, 5, 10))
    p_values = stats.ttest_1samp(drawn, 0.0, axis=2).pvalue
    wrong = np.mean([min(holm(list(row))) <= 0.05 for row in p_values])
    uncorrected = np.mean(p_values.min(1) <= 0.05)
    standard_error = math.sqrt(0.05 * 0.95 / 2000)
    assert wrong < 0.05 + 3 * standard_error
    assert uncorrected > 0.15


def test_power_is_the_share_of_simulated_studies_that_find_it() -> None:
    rng = np.random.default_rng(3)
    found = stats.ttest_1samp(rng.normal(0.6, 1.0, size=(4000, 20)), 0.0, axis=1).pvalue <= 0.05
    assert power(0.6, 1.0, 20) == pytest.approx(found.mean(), abs=0.03)


def test_seeds_are_the_fewest() -> None:
    count = seeds_for(0.5, 1.0)
    assert count == 34  # The textbook's number for d = 0.5, 80 %, 5 %.
    assert power(0.5, 1.0, count) >= 0.8 > power(0.5, 1.0, count - 1)


@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        ([1.0, 2.0], [1.0], "2 and 1 scores cannot be compared"),
        ([1.0], [1.0], "wanted the same two or more seeds"),
        ([1.0, math.nan], [1.0, 2.0], "NaN or infinite"),
    ],
)
def test_refusals(ours: list[float], theirs: list[float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        compare(ours, theirs)
    with pytest.raises(InputError, match="must be positive"):
        seeds_for(0.0, 1.0)


def test_rows_are_corrected_within_their_family_only() -> None:
    strong, weak = pairs(12, 3.0), pairs(12, 0.9, 4)
    measured = [
        Scores(task, "warm", "short", method, "plain", "accuracy", *map(tuple, both))
        for method in ("mpo", "svd")
        for task, both in (("a", strong), ("b", weak))
    ]
    rows = rows_of(measured)
    assert [row.family for row in rows] == [2, 2, 2, 2]
    assert rows[0].p_holm == pytest.approx(min(1.0, 2 * rows[0].p_t))
    assert rows[0].ci_low < rows[0].ci95_low
    (alone,) = rows_of(measured[:1])
    assert (alone.ci_low, alone.p_holm) == (alone.ci95_low, alone.p_t)
    assert from_json(to_json(rows)) == rows


def test_swapped_sides_turn_the_row_around() -> None:
    ours, theirs = map(tuple, pairs(12, 1.0))
    base = ("a", "warm", "short", "mpo", "plain", "kl")
    right, wrong = (
        rows_of([Scores(*base, ours, theirs)])[0],
        rows_of([Scores(*base, theirs, ours)])[0],
    )
    assert right.difference == -wrong.difference
    assert right.ci_low > 0 > wrong.ci_high
