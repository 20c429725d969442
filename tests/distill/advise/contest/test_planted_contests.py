"""Whole contests by a clock that only steps move, and the right advice where it is known."""

from __future__ import annotations

from collections import Counter

import pytest
from planted_branches import branches_job
from planted_jobs import STEP_SECONDS, StepClock, job

from opdf_compile.distill.advise import Ruling, referee
from opdf_compile.errors import InputError

STEPS, BUDGET = 30, 1.3


def contest(
    case: str, seed: int, names: str, *, steps: int = STEPS, budget: float = BUDGET, pairs: int = 8
) -> tuple[Ruling, StepClock]:
    clock = StepClock()
    planted = job(case, seed, clock, steps=steps)
    return referee(planted, names, budget_seconds=budget, most_pairs=pairs, clock=clock), clock


@pytest.fixture(scope="module")
def found() -> tuple[Ruling, StepClock]:
    return contest("more", 0, "gains", pairs=2)


def test_a_contest_keeps_its_budget_and_scores_every_side_on_every_seed(
    found: tuple[Ruling, StepClock],
) -> None:
    ruling, clock = found
    assert clock.now == ruling.seconds <= BUDGET
    assert ruling.seeds == (1000, 1001)
    for side in (ruling.plain, *(s.side for s in (*ruling.contenders, *ruling.longer))):
        assert len(side.scores) == 2 and None not in side.scores


def test_steps_are_equal_and_time_is_equal(found: tuple[Ruling, StepClock]) -> None:
    """A step of gains costs two plain ones on this clock, so that plain has twice as many."""
    ruling, _ = found
    (gains,), (longer,) = ruling.contenders, ruling.longer
    assert gains.cost == pytest.approx(STEP_SECONDS[True] / STEP_SECONDS[False])
    by_steps, by_time = gains.bouts["steps"], gains.bouts["time"]
    assert (by_steps.steps, by_steps.plain_steps) == (STEPS, STEPS)
    assert (by_time.steps, by_time.plain_steps) == (STEPS, 2 * STEPS)
    assert by_steps.time == pytest.approx(2.0) and by_time.time == pytest.approx(1.0)
    assert by_steps.duel.theirs == ruling.plain.scores
    # The same run serves equal time and the question whether more steps help.
    assert by_time.duel.theirs == longer.side.scores == longer.bouts["steps"].duel.ours


def test_every_side_is_tuned_with_the_same_work(found: tuple[Ruling, StepClock]) -> None:
    ruling, _ = found
    sides = [ruling.plain, ruling.contenders[0].side, ruling.longer[0].side]
    work = [sum(row.steps * row.seeds for row in side.tried) / side.final_steps for side in sides]
    # The last run of a tuning fits in or does not: so much may they differ.
    assert max(work) - min(work) <= 1.0
    assert all(side.tuning_runs >= 11 for side in sides)


def test_a_budget_that_is_too_small_says_which_would_do() -> None:
    with pytest.raises(InputError, match=r"0.3 s is too little time for 3 ways to train.*--budget"):
        contest("more", 0, "gains", budget=0.3)


@pytest.mark.slow
def test_a_machine_that_becomes_slower_in_the_final_is_told() -> None:
    clock = StepClock()

    def slower(text: str, _share: float) -> None:
        if text.startswith("final"):
            clock.now += 0.1

    planted = job("more", 0, clock, steps=STEPS)
    found = referee(planted, "gains", budget_seconds=3.0, clock=clock, progress=slower)
    assert 0 < len(found.seeds) < 8
    assert f"there was time for {len(found.seeds)} of 8 seeds" in found.notes[-1]
    assert found.seconds <= 3.0


def test_a_clock_that_stands_still_gives_no_equal_time() -> None:
    planted = job("more", 0, steps=STEPS)
    with pytest.raises(InputError, match="takes no time that the clock can measure"):
        referee(planted, "gains", budget_seconds=BUDGET, clock=lambda: 0.0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"equal": "money"}, "equal is 'money', wanted steps, time or both"),
        ({"after": "int4"}, "after is 'int4', wanted int8"),
        ({"most_pairs": 1}, "wanted at least 2 for an interval"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        referee(job("more", 0), "gains", **options)  # type: ignore[arg-type]


def test_plain_alone_is_no_contest() -> None:
    with pytest.raises(InputError, match="are the plain student alone, wanted one beside it"):
        referee(job("more", 0), "plain,plain@3x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "names", "steps", "budget", "right"),
    [
        ("helps", "mpo,gains", 60, 16.0, {"use"}),
        ("hurts", "recipe", 200, 26.0, {"no-difference", "do-not-use"}),
        ("more", "gains,recipe", 60, 24.0, {"more-steps"}),
    ],
)
def test_nine_of_ten_contests_give_the_right_advice(
    case: str, names: str, steps: int, budget: float, right: set[str]
) -> None:
    """Other targets, examples and start weights in each."""
    verdicts = Counter(
        contest(case, seed, names, steps=steps, budget=budget, pairs=12)[0].verdict
        for seed in range(10)
    )
    assert sum(count for verdict, count in verdicts.items() if verdict in right) >= 9, verdicts


@pytest.mark.slow
def test_branches_that_help_are_used_in_nine_of_ten_contests() -> None:
    verdicts = Counter[str]()
    for seed in range(10):
        clock = StepClock()
        planted = branches_job(seed, clock, steps=80)
        name = "repvgg(start=published)"
        found = referee(planted, name, budget_seconds=18, most_pairs=10, clock=clock)
        verdicts[found.verdict] += 1
    assert verdicts["use"] >= 9, verdicts


@pytest.mark.slow
def test_nothing_to_learn_says_use_in_at_most_two_of_twenty_contests() -> None:
    """Labels of noise. More than 2 of 20 have a chance of 7.5 % at the 5 % that are allowed."""
    races = [contest("nothing", seed, "gains,recipe", budget=4.0)[0] for seed in range(20)]
    assert sum(ruling.verdict == "use" for ruling in races) <= 2
