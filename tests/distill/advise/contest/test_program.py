"""Which runs a set has, and how a budget is divided."""

from __future__ import annotations

import pytest

from opdf_compile.distill.advise.contest.program import (
    Heat,
    Lane,
    equal_time,
    heats_of,
    program_of,
)
from opdf_compile.distill.advise.contest.ruling import BASES
from opdf_compile.distill.advise.search import ENDS
from opdf_compile.distill.advise.timetable import Pace
from opdf_compile.errors import InputError

PLAIN = Lane("plain", 1.0, Pace(0.0, 0.01, 0.1), plain=True)
LONGER = Lane("plain@2x", 2.0, Pace(0.0, 0.01, 0.1), plain=True)
SLOW = Lane("slow", 1.0, Pace(0.5, 0.015, 0.1))
LIKE = Lane("like", 1.0, Pace(0.0, 0.0101, 0.1))
TWICE = Lane("twice", 1.0, Pace(0.0, 0.02, 0.1))
HALF = Lane("half@0.5x", 0.5, Pace(0.0, 0.04, 0.1))


def test_equal_time_counts_the_set_up() -> None:
    """0.5 s + 100 x 0.015 s = 2 s, in which plain takes 200 steps of 0.01 s."""
    assert equal_time(SLOW, 100, PLAIN) == 200
    assert equal_time(LIKE, 100, PLAIN) == 101
    assert equal_time(Lane("fast", 1.0, Pace(0.0, 1e-6, 0.1)), 10, PLAIN) == 1


def test_each_contender_meets_plain_runs_of_its_steps_and_of_its_time() -> None:
    heats = heats_of([PLAIN, LONGER, HALF], 100, BASES)
    assert heats.own == (Heat(0, 100), Heat(1, 200), Heat(2, 50))
    assert heats.rivals[:2] == ({}, {"steps": Heat(0, 100)})
    # 50 steps of 0.04 s are 2 s, 200 plain ones: the longer plain run, which is there already.
    assert heats.rivals[2] == {"steps": Heat(0, 50), "time": Heat(1, 200)}
    assert set(heats.all) == {Heat(0, 100), Heat(1, 200), Heat(2, 50), Heat(0, 50)}


def test_plain_runs_that_measuring_cannot_tell_apart_are_one() -> None:
    heats = heats_of([PLAIN, LONGER, LIKE], 100, BASES)
    assert heats.rivals[2] == {"steps": Heat(0, 100), "time": Heat(0, 100)}
    assert len(heats.all) == len(set(heats.all)) == 3


@pytest.mark.parametrize(("cost", "lane"), [(1.3, 0), (1.6, 1), (5.0, 1)])
def test_a_longer_plain_run_takes_the_setting_of_the_nearest_length(cost: float, lane: int) -> None:
    """The geometric middle of 100 and 200 is 141."""
    other = Lane("other", 1.0, Pace(0.0, 0.01 * cost, 0.1))
    heats = heats_of([PLAIN, LONGER, other], 100, BASES)
    assert heats.rivals[2]["time"] == Heat(lane, round(100 * cost))


def test_what_is_not_raced_has_no_runs() -> None:
    assert set(heats_of([PLAIN, LONGER, SLOW], 100, ("steps",)).rivals[2]) == {"steps"}
    assert len(heats_of([PLAIN, LONGER, SLOW], 100, ("steps",)).all) == 3


def spent(lanes: list[Lane], steps: int, work: float, sets: int, first: float) -> float:
    """Seconds of a program, run by run."""
    rungs = zip((ENDS[0], ENDS[1] - ENDS[0], 1 - ENDS[1]), (first, first**0.5, 1.0), strict=True)
    runs = [(work * part / share, share) for part, share in rungs]
    total = 0.0
    for lane in lanes:
        for count, share in runs:
            total += count * lane.seconds(share * lane.steps(steps))
    heats = heats_of(lanes, steps, BASES).all
    return total + sets * sum(lanes[heat.lane].seconds(heat.steps) for heat in heats)


@pytest.mark.parametrize("budget", [150.0, 400.0, 2000.0])
def test_a_program_fits_into_its_time_and_tunes_for_a_third_of_it(budget: float) -> None:
    lanes = [PLAIN, LONGER, SLOW, TWICE]
    program = program_of(budget, budget, 200, lanes, BASES, most_sets=30)
    first = program.shares[0]
    assert spent(lanes, program.steps, program.work, program.sets, first) <= budget
    assert 8 <= program.sets <= 30
    assert program.steps == 200 or budget < 400
    # Rung 1 has room for its scan.
    assert ENDS[0] * program.work / first >= 11 * (1 - 1e-9)


def test_a_budget_that_a_refusal_names_is_enough() -> None:
    lanes = [PLAIN, LONGER, SLOW, TWICE]
    with pytest.raises(InputError, match=r"4 ways to train.* --budget (\d+), or \d+ for") as no:
        program_of(20.0, 15.0, 500, lanes, BASES, most_sets=30)
    named = float(str(no.value).split("--budget ")[1].split(",")[0])
    assert program_of(named, named - 5.0, 500, lanes, BASES, most_sets=30).sets >= 8
    with pytest.raises(InputError):
        program_of(named, named - 7.0, 500, lanes, BASES, most_sets=30)
