"""The right advice where it is known, within the budget, and with equal time for both sides."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from planted_jobs import STEP_SECONDS, StepClock, job
from quick import quick
from torch import nn

from opdf_compile.distill.advise import Advice, advise
from opdf_compile.distill.advise.sentences import advice_json, recipe_lines, recommendation
from opdf_compile.distill.recipe import parse_recipe
from opdf_compile.errors import InputError
from opdf_compile.planning import Plan

STEPS, BUDGET = 60, 5.0
RIGHT = {"helps": "use", "hurts": "do-not-use"}


def race(case: str, clock: StepClock, *, budget: float = BUDGET, seed: int = 0) -> Advice:
    return advise(
        job(case, seed, clock, steps=STEPS), budget_seconds=budget, most_pairs=8, clock=clock
    )


# Of what hurts the verdict is held by given scores in test_advise_verdict.py.
@pytest.fixture(scope="module", params=quick(["helps", "hurts"], {"helps"}))
def found(request: pytest.FixtureRequest) -> tuple[str, Advice, StepClock]:
    clock = StepClock()
    # Of seed 0 two decays of "helps" end all but equal; the better has a rate untried beside it.
    return request.param, race(request.param, clock, seed=1), clock


def test_planted_case_gets_the_right_advice(found: tuple[str, Advice, StepClock]) -> None:
    case, advice, _clock = found
    assert advice.verdict == RIGHT[case]
    assert advice.comparison is not None
    low, high = advice.comparison.low, advice.comparison.high
    assert low > 0 if case == "helps" else high < 0


def test_budget_is_kept_and_both_sides_have_equal_time(
    found: tuple[str, Advice, StepClock],
) -> None:
    _case, advice, clock = found
    assert clock.now == advice.seconds <= BUDGET
    run = STEPS * STEP_SECONDS[False]
    # The last run of a tuning fits in or does not; so much may they differ.
    assert abs(advice.plain.tuning_seconds - advice.over.tuning_seconds) <= run
    assert advice.plain.final_seconds == pytest.approx(advice.over.final_seconds)
    # A step costs twice as much over-parameterised, so there are half as many.
    assert (advice.plain.final_steps, advice.over.final_steps) == (STEPS, STEPS // 2)


def test_choice_lies_inside_the_grid(found: tuple[str, Advice, StepClock]) -> None:
    _case, advice, _clock = found
    for side in (advice.plain, advice.over):
        rates = [row.lr for row in side.tried if row.method == side.method]
        assert min(rates) < side.lr < max(rates)
        assert not side.at_edge


def test_advice_is_said_and_can_be_pasted(found: tuple[str, Advice, StepClock]) -> None:
    case, advice, _clock = found
    start = f"Use {advice.over.method} at lr" if case == "helps" else "Do not use"
    assert recommendation(advice).startswith(start)
    rest = '[student]\nmodel = "a:b"\n[data]\nsource = "digits"\n[training]\nsteps = 1\n'
    lines = recipe_lines(advice).replace("[optimizer]", '[optimizer]\nname = "SGD"')
    read = parse_recipe(f'{rest}[[loss]]\nkind = "task"\n{lines}\n')
    assert read.plan.enabled == (case == "helps")
    side = advice.over if case == "helps" else advice.plain
    assert (read.optimizer.lr, read.optimizer.weight_decay) == (side.lr, side.weight_decay)


def test_json_holds_no_infinities(found: tuple[str, Advice, StepClock]) -> None:
    payload = json.loads(json.dumps(advice_json(found[1]), allow_nan=False))
    assert payload["schema"] == "opdf-advise/1"
    assert payload["verdict"] == found[1].verdict
    assert len(payload["comparison"]["differences"]) == len(payload["plain"]["scores"])


def test_budget_that_is_too_small_says_which_would_do() -> None:
    clock = StepClock()
    with pytest.raises(
        InputError, match=r"too little time: a run of \d+ steps .* give --budget \d"
    ):
        race("hurts", clock, budget=0.6)
    # It was refused after the cost of a step was known, and nothing else was tried.
    assert sum(clock.steps.values()) <= 60


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_budget_without_meaning_is_refused(budget: float) -> None:
    with pytest.raises(InputError, match="wanted a positive number of seconds"):
        advise(job("hurts", 0), budget_seconds=budget)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["helps", "hurts"])
def test_nine_of_ten_races_by_the_real_clock_give_the_right_advice(case: str) -> None:
    """Other targets, examples and start weights in each; 20 seconds on an idle machine do."""
    right = 0
    for seed in range(10):
        started = time.perf_counter()
        advice = advise(job(case, seed, steps=150), budget_seconds=60)
        right += advice.verdict == RIGHT[case]
        # No assertion about the machine: the race by its own clock, which started later.
        assert advice.seconds <= min(60.0, time.perf_counter() - started)
    assert right >= 9


@pytest.fixture(scope="module")
def noise() -> list[tuple[Advice, float]]:
    """Twenty races on labels of noise, each with the gain that its final students truly have.

    Inputs and labels are standard normal, so that the error of a student of weight W is 1 + |W|^2.
    """
    return [noise_race(seed) for seed in range(20)]


def noise_race(seed: int) -> tuple[Advice, float]:
    clock = StepClock()
    trained: list[tuple[bool, nn.Module]] = []
    planted = job("nothing", seed, clock, steps=STEPS)

    def optimizer(model: nn.Module, plan: Plan | None, **options: float) -> Any:
        trained.append((plan is None, model))
        return planted.optimizer(model, plan, **options)

    watched = replace(planted, optimizer=optimizer)
    advice = advise(watched, budget_seconds=BUDGET, most_pairs=8, clock=clock)
    errors: dict[bool, list[float]] = {True: [], False: []}
    for plain, model in trained[-2 * len(advice.seeds) :]:
        errors[plain].append(sum(float(p.detach().square().sum()) for p in model.parameters()))
    assert len(errors[True]) == len(errors[False]) == len(advice.seeds)
    return advice, fmean(errors[True]) - fmean(errors[False])


def missed(races: list[tuple[Advice, float]], *, width: float = 1.0) -> int:
    """Intervals, made narrower by a factor, that do not hold the truth."""
    found = [(advice.comparison, truth) for advice, truth in races]
    return sum(
        abs(of.mean - truth) > width * (of.high - of.low) / 2
        for of, truth in found
        if of is not None
    )


@pytest.mark.slow
def test_the_interval_holds_what_is_true_of_the_final_students(
    noise: list[tuple[Advice, float]],
) -> None:
    """More than 3 misses of 20 have a chance of 1.6 % at the 5 % that are promised.

    A quarter of the interval, which the truth leaves in 57 of 100 races, is found too narrow.
    """
    assert missed(noise) <= 3 < missed(noise, width=0.25)


@pytest.mark.slow
def test_labels_of_noise_give_no_advice_in_eighteen_of_twenty_races(
    noise: list[tuple[Advice, float]],
) -> None:
    assert sum(advice.verdict in RIGHT.values() for advice, _ in noise) <= 2
