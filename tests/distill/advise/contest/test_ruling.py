"""The decision: on rulings made by hand, and how often it errs on scores that are drawn."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from made_ruling import ruling, standing
from scipy import stats

from opdf_compile.distill.advise.contest.ruling import Basis, Rounded, Ruling
from opdf_compile.distill.advise.contest.wording import ruling_words

PLAIN = [0.80, 0.81, 0.79, 0.80, 0.82, 0.78, 0.80, 0.81]
LIKE = [0.81, 0.80, 0.80, 0.79, 0.83, 0.77, 0.81, 0.80]
BETTER = [0.84, 0.86, 0.83, 0.85, 0.86, 0.83, 0.84, 0.85]
BEST = [score + 0.05 for score in BETTER]
BOTH: dict[Basis, list[float]] = {"steps": PLAIN, "time": PLAIN}


def decided(found: Ruling) -> tuple[str, str, str]:
    return found.decision.verdict, found.decision.of.name, found.decision.by


def test_a_contender_that_is_better_at_equal_time_is_used() -> None:
    found = ruling(PLAIN, LIKE, standing("a", LIKE, BOTH), standing("b", BETTER, BOTH))
    assert decided(found) == ("use", "b", "time")
    best = ruling(PLAIN, LIKE, standing("a", BEST, BOTH), standing("b", BETTER, BOTH))
    assert decided(best) == ("use", "a", "time")
    # Also where more steps help: plain has had them at equal time.
    steps = ruling(PLAIN, BETTER, standing("b", BETTER, BOTH))
    assert (decided(steps), steps.improving) == (("use", "b", "time"), steps.longer[0])


def test_more_steps_come_before_a_gain_that_time_would_buy() -> None:
    half = standing("a", BETTER, {"steps": PLAIN, "time": BETTER})
    assert decided(ruling(PLAIN, BETTER, half)) == ("more-steps", "plain@2x", "steps")
    # Where steps have no more to give, the gain at equal steps counts.
    assert decided(ruling(PLAIN, LIKE, half)) == ("use", "a", "steps")
    # Not where plain is better in the time that it takes.
    worse = standing("a", BETTER, {"steps": PLAIN, "time": BEST})
    assert decided(ruling(PLAIN, LIKE, worse)) == ("do-not-use", "a", "time")


def test_steps_decide_where_time_was_not_raced() -> None:
    found = ruling(PLAIN, BETTER, standing("a", BETTER, {"steps": PLAIN}))
    assert (found.bases, decided(found)) == (("steps",), ("use", "a", "steps"))


def test_nothing_that_helps_leaves_plain() -> None:
    found = ruling(PLAIN, LIKE, standing("a", LIKE, BOTH), standing("b", LIKE, BOTH))
    assert found.verdict == "no-difference" and found.improving is None
    bad = {"steps": BETTER, "time": BETTER}
    lost = ruling(BETTER, BETTER, standing("a", PLAIN, bad), standing("b", PLAIN, bad))
    assert lost.verdict == "do-not-use"
    one = ruling(BETTER, BETTER, standing("a", PLAIN, bad), standing("b", BETTER, bad))
    assert one.verdict == "no-difference"


def test_a_side_at_the_edge_has_not_lost() -> None:
    won = ruling(PLAIN, LIKE, standing("a", BETTER, BOTH))
    more = ruling(PLAIN, BETTER, standing("a", LIKE, BOTH))
    for found in (won, more):
        assert replace(found, plain=replace(found.plain, at_edge=True)).verdict == "undecided"
    lost = standing("a", PLAIN, {"steps": BETTER, "time": BETTER})
    edge = replace(lost, side=replace(lost.side, at_edge=True))
    assert ruling(BETTER, BETTER, lost).verdict == "do-not-use"
    assert ruling(BETTER, BETTER, edge).verdict == "undecided"
    # The winner may lie at an edge: it can only become better.
    better = standing("a", BETTER, BOTH)
    better = replace(better, side=replace(better.side, at_edge=True))
    assert ruling(PLAIN, LIKE, better).verdict == "use"


def test_runs_that_diverged_have_lost_and_p_is_corrected_for_all_duels() -> None:
    """8 wins of 8 have p = 2 / 2^8; 1 of 8 lost has 2 x 9 / 2^8. Four duels: Holm by hand."""
    other = standing("b", [*BETTER[:7], None], BOTH)
    found = ruling(PLAIN, LIKE, standing("a", LIKE, BOTH), other)
    assert other.bouts["time"].duel.p == pytest.approx(18 / 256)
    assert found.corrected["b", "time"] == pytest.approx(4 * 18 / 256)
    assert found.verdict == "no-difference"
    all_lost = standing("b", [None] * 8, BOTH)
    assert ruling(PLAIN, LIKE, all_lost).verdict == "do-not-use"


def test_a_contest_in_which_every_run_diverged_says_that() -> None:
    none = [None] * 8
    nothing = ruling(none, none, standing("b", none, {"steps": none}))
    assert nothing.verdict == "undecided"
    assert ruling_words(nothing).startswith("Undecided: every final run diverged, the plain")
    one = ruling(none, none, standing("b", [0.8, *none[1:]], {"steps": none}))
    assert (one.verdict, one.diverged) == ("no-difference", False)


def test_lower_is_better_turns_the_gain() -> None:
    found = ruling(PLAIN, LIKE, standing("a", BETTER, {"steps": PLAIN}))
    (bout,) = found.contenders[0].bouts.values()
    turned = replace(bout, duel=replace(bout.duel, higher_is_better=False))
    lost = replace(found, contenders=(replace(found.contenders[0], bouts={"steps": turned}),))
    assert lost.verdict == "do-not-use"


def test_a_drop_is_positive_where_int8_is_worse() -> None:
    assert Rounded((0.9, 0.8), (0.8, 0.6)).drop(True) == pytest.approx(0.15)
    assert Rounded((0.9, 0.8), (0.8, 0.6)).drop(False) == pytest.approx(-0.15)


SEEDS = 6


def drawn(
    rng: np.random.Generator, gain: float = 0.0, longer: float = 0.0, grain: float = 0.0
) -> Ruling:
    """Three contenders with both duels on six seeds; the first has the gain.

    Runs on a seed share a part of their chance, as runs on the same examples do. A grain rounds the
    scores, as an accuracy on few examples is round.
    """
    shared = rng.normal(size=SEEDS)

    def scores(mean: float) -> list[float]:
        values = mean + shared + rng.normal(size=SEEDS)
        return [float(v) for v in (np.round(values / grain) * grain if grain else values)]

    plain, timed = scores(0.0), [scores(longer / 2) for _ in range(3)]
    gains = (gain, 0.0, 0.0)
    contenders = [
        standing(f"c{k}", scores(gains[k] + longer / 2), {"steps": plain, "time": timed[k]})
        for k in range(3)
    ]
    return ruling(plain, scores(longer), *contenders)


@functools.cache
def nulls(grain: float) -> list[Ruling]:
    """Contests in which nobody has a gain."""
    rng = np.random.default_rng(0)
    return [drawn(rng, grain=grain) for _ in range(COUNT)]


COUNT = 400
# As many of so many contests say "use" with a chance of one in a thousand, if each does with 5 %.
MOST = int(stats.binom.ppf(0.999, COUNT, 0.05))


@pytest.mark.parametrize(
    "grain", [0.0, *(pytest.param(grain, marks=pytest.mark.slow) for grain in (1.0, 3.0))]
)
def test_null_contests_say_use_in_at_most_five_of_a_hundred(grain: float) -> None:
    found = nulls(grain)
    assert sum(one.verdict == "use" for one in found) <= MOST


@pytest.mark.parametrize("grain", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_without_the_correction_for_six_duels_it_would_be_too_many(grain: float) -> None:
    """So the bound can fail; at a coarser grain most differences are equal, and none is shown."""
    found = nulls(grain)
    bare = sum(
        any(b.duel.shown() > 0 for s in one.contenders for b in s.bouts.values()) for one in found
    )
    assert bare > MOST


@pytest.mark.parametrize(
    ("planted", "right"),
    [
        ({"gain": 4.0}, {"use"}),
        ({}, {"no-difference", "do-not-use"}),
        ({"longer": 4.0}, {"more-steps"}),
    ],
)
def test_what_is_planted_is_found_in_nine_of_ten(
    planted: dict[str, float], right: set[str]
) -> None:
    """A gain of 4 where a difference has a spread of sqrt(2): t is about 7 on six seeds."""
    rng = np.random.default_rng(1)
    found = [drawn(rng, **planted) for _ in range(100)]
    assert sum(one.verdict in right for one in found) >= 90
    if "gain" in planted:
        assert {one.decision.of.name for one in found if one.verdict == "use"} == {"c0"}
