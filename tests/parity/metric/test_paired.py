"""The interval of paired scores: known values, exact error rates of counts, and what it decides."""

from __future__ import annotations

import math

import numpy as np
import pytest

from opdf_compile.parity.metric.paired import Claim, compare_draws, compare_rows

HIGHER, LOWER = Claim(0.005), Claim(0.005, higher_is_better=False)
ROWS = (10, 20, 50, 100, 200, 500, 1000, 3000)


def scores(rows: int, worse: int, better: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong of rows, of which so many turn."""
    baseline, candidate = np.ones(rows), np.ones(rows)
    candidate[:worse] = 0.0
    baseline[worse : worse + better] = 0.0
    return candidate, baseline


def binomial(rows: int, rate: float) -> np.ndarray:
    logs = [
        math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1)
        + k * math.log(rate) + (rows - k) * math.log1p(-rate)
        for k in range(rows + 1)
    ]  # fmt: skip
    return np.exp(logs)


def test_without_ties_it_is_the_t_interval() -> None:
    off = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10]) - 5.5  # Symmetrical: no correction for skew.
    found = compare_rows(off + 3.0, np.zeros(10), Claim(1.0), alike=False)
    # t of 9 degrees of freedom at 95 %, from a table.
    half = 1.833113 * off.std(ddof=1) / math.sqrt(10)
    assert found.difference == pytest.approx(3.0)
    assert (found.low, found.high) == pytest.approx((3.0 - half, 3.0 + half), rel=1e-6)


@pytest.mark.parametrize("rows", ROWS)
def test_wrong_verdicts_on_counts_are_rare(rows: int) -> None:
    """Exact, over all outcomes: the truth lies at the margin, so that each verdict is wrong."""
    ends = [compare_rows(*scores(rows, k), HIGHER, alike=False) for k in range(rows + 1)]
    low, high = np.array([d.low for d in ends]), np.array([d.high for d in ends])
    for rate in np.geomspace(0.5 / rows, 0.4, 25):
        likely = binomial(rows, rate)
        assert likely[low > -rate].sum() <= 0.05, rate
        assert likely[high < -rate].sum() <= 0.05, rate


def test_plain_t_would_be_wrong_much_more_often() -> None:
    """What the correction is for: without it a third of draws would pass at twice the margin."""
    rows, rate = 200, 0.01
    likely, wrong = binomial(rows, rate), 0.0
    for worse in range(rows + 1):
        off = np.subtract(*scores(rows, worse))
        low = off.mean() - 1.6525 * off.std(ddof=1) / math.sqrt(rows)
        wrong += likely[worse] if low >= -0.005 else 0.0
    assert wrong > 0.1
    right = sum(
        likely[k]
        for k in range(rows + 1)
        if compare_rows(*scores(rows, k), HIGHER, alike=False).verdict == "pass"
    )
    assert right <= 0.05


@pytest.mark.parametrize("repetitions", [200, pytest.param(4000, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("rows", [5, 30, 200])
@pytest.mark.parametrize("kind", ["normal", "turns both ways"])
def test_planted_truths(kind: str, rows: int, repetitions: int) -> None:
    """A candidate that is worse by the margin, exactly: neither verdict may come too often."""
    random, margin = np.random.default_rng(1), 0.05
    passed = failed = covered = 0
    for _ in range(repetitions):
        baseline = random.normal(size=rows)
        off = random.normal(-margin, 0.3, size=rows)
        if kind != "normal":
            baseline = np.ones(rows)
            off = random.choice([-1.0, 0.0, 1.0], p=[0.15, 0.75, 0.1], size=rows)
        found = compare_rows(baseline + off, baseline, Claim(margin), alike=False)
        passed += found.verdict == "pass"
        failed += found.verdict == "fail"
        covered += found.low <= -margin <= found.high
    # Three standard deviations of a share that is 5 % (10 %) on so many repetitions.
    room = 3 * math.sqrt(0.05 * 0.95 / repetitions)
    assert passed / repetitions <= 0.05 + room and failed / repetitions <= 0.05 + room
    assert covered / repetitions >= 0.9 - 3 * math.sqrt(0.09 / repetitions)


def test_counts_that_do_not_change_follow_the_rule_of_three() -> None:
    found = compare_rows(*scores(100, 0), HIGHER, alike=False)
    assert found.verdict == "inconclusive" and found.difference == 0
    assert -found.low == pytest.approx(-math.log(0.05) / 100, rel=0.02)
    assert found.needed is not None and 590 <= found.needed <= 610
    assert compare_rows(*scores(found.needed, 0), HIGHER, alike=False).verdict == "pass"
    assert compare_rows(*scores(found.needed - 1, 0), HIGHER, alike=False).verdict != "pass"


def test_one_function_needs_no_luck() -> None:
    found = compare_rows(*scores(3, 0), HIGHER, alike=True)
    assert (found.verdict, found.low, found.high) == ("pass", 0.0, 0.0)


@pytest.mark.parametrize(("off", "verdict"), [(-1.0, "fail"), (-0.001, "pass"), (1.0, "pass")])
def test_a_difference_without_spread_is_a_point(off: float, verdict: str) -> None:
    found = compare_rows(np.full(4, off), np.zeros(4), HIGHER, alike=False)
    assert found.verdict == verdict and found.low == found.high == off


def test_scores_of_zero_tell_no_step() -> None:
    found = compare_rows(np.zeros(50), np.zeros(50), HIGHER, alike=False)
    assert found.verdict == "inconclusive" and found.needed is None
    assert math.isinf(found.low) and math.isinf(found.high)


def test_one_row_tells_no_spread() -> None:
    found = compare_rows(np.array([0.3]), np.array([0.2]), HIGHER, alike=False)
    assert found.verdict == "inconclusive" and found.needed is None


def test_lower_is_better_mirrors() -> None:
    candidate, baseline = scores(400, 40)
    assert compare_rows(candidate, baseline, HIGHER, alike=False).verdict == "fail"
    assert compare_rows(candidate, baseline, LOWER, alike=False).verdict == "pass"
    assert compare_rows(baseline, candidate, LOWER, alike=False).verdict == "fail"


def test_the_needed_rows_decide() -> None:
    random = np.random.default_rng(0)
    baseline = random.normal(size=100)
    candidate = baseline + random.normal(0, 0.1, size=100)
    found = compare_rows(candidate, baseline, Claim(0.01), alike=False)
    assert found.verdict == "inconclusive" and found.needed is not None
    # Many more such rows have about that mean and spread.
    times = -(-found.needed // 100)
    more = compare_rows(
        np.tile(candidate, times), np.tile(baseline, times), Claim(0.01), alike=False
    )
    assert more.verdict != "inconclusive"
    # By hand: (z s / distance)^2, the skew left aside.
    off = candidate - baseline
    by_hand = (1.645 * off.std() / (0.01 - abs(off.mean()))) ** 2
    assert found.needed == pytest.approx(by_hand, rel=0.15)


def test_a_truth_at_the_margin_needs_rows_without_end() -> None:
    random = np.random.default_rng(0)
    off = random.normal(size=100)
    off += -0.005 - off.mean()
    symmetrical = np.concatenate([off, 2 * off.mean() - off])
    found = compare_rows(symmetrical, np.zeros(200), HIGHER, alike=False)
    assert found.verdict == "inconclusive"
    assert found.needed is None or found.needed > 1e9


def moves(off: np.ndarray, draws: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """The mean of resampled rows, and of all rows but one, as a metric of one number has them."""
    random, rows = np.random.default_rng(0), len(off)
    drawn = [off[random.integers(rows, size=rows)].mean() for _ in range(draws)]
    left = [off[np.arange(rows) != row].mean() for row in range(rows)]
    return np.array(drawn), (rows - 1) * (off.mean() - np.array(left))


def test_draws_of_a_mean_give_its_t_interval_and_some_room() -> None:
    """The bootstrap against the formula that shares nothing with it."""
    off = np.random.default_rng(0).normal(0.02, 0.1, size=400)
    off = np.concatenate([off, 2 * off.mean() - off])  # Symmetrical: no correction for skew.
    found = compare_draws(float(off.mean()), *moves(off, 4000), 800, Claim(0.02), alike=False)
    half = 1.646765 * off.std(ddof=1) / math.sqrt(800)  # t of 799 degrees of freedom, at 95 %.
    assert (found.low + found.high) / 2 == pytest.approx(off.mean(), abs=0.01 * half)
    assert half <= (found.high - found.low) / 2 <= 1.1 * half


@pytest.mark.parametrize("rows", [10, 20, 50, 100, 200])
def test_wrong_verdicts_on_one_number_are_rare(rows: int) -> None:
    """Exact but for the draws, over all outcomes, as for scores by row: the truth is the margin."""
    counts = range(rows * 2 // 5 + 5 * math.isqrt(rows) + 5)
    ends = [
        compare_draws(-k / rows, *moves(np.subtract(*scores(rows, k))), rows, HIGHER, alike=False)
        for k in counts
        if k < rows
    ]
    low, high = np.array([d.low for d in ends]), np.array([d.high for d in ends])
    for rate in np.geomspace(0.5 / rows, 0.4, 25):
        likely = binomial(rows, rate)[: len(ends)]
        # 1,000 draws know a spread to 2.2 %, which moves 5 % at the end of it to 5.8 % at most.
        assert likely[low > -rate].sum() <= 0.058, rate
        assert likely[high < -rate].sum() <= 0.058, rate


def test_one_number_agrees_with_the_scores_of_its_rows() -> None:
    """Of counts both give one interval; the draws alone know its spread to 2.2 %."""
    candidate, baseline = scores(200, 7, 2)
    off = candidate - baseline
    by_row = compare_rows(candidate, baseline, HIGHER, alike=False)
    by_draw = compare_draws(float(off.mean()), *moves(off), 200, HIGHER, alike=False)
    assert (by_draw.low, by_draw.high) == pytest.approx((by_row.low, by_row.high), rel=0.08)


def test_draws_that_never_move_tell_nothing() -> None:
    still = (0.0, np.zeros(10), np.zeros(9), 9, HIGHER)
    found = compare_draws(*still, alike=False)
    assert found.verdict == "inconclusive" and found.needed is None
    assert compare_draws(*still, alike=True).verdict == "pass"
