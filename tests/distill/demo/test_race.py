"""The race is fair: one start, one order of images, rates chosen on validation, test held out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import opdf_compile as opdf
from opdf_compile.distill.demo import comparing
from opdf_compile.distill.demo.comparing import _Racing, digits_job, run_race
from opdf_compile.distill.demo.outcomes import Budget, Curve, Outcomes, choose_rate
from opdf_compile.distill.engine import Setup, set_up
from opdf_compile.distill.recipe import Job
from opdf_compile.distill.recipe.examples import Table, pick
from opdf_compile.training.optimizer.overparam import Overparam

TINY = Budget(rates=(0.01, 0.02), seeds=(0, 1), epochs=4, teacher_epochs=1)


@pytest.fixture(scope="module")
def job() -> Job:
    whole = digits_job(TINY)
    sizes = {"train": 192, "validation": 80, "test": 100}
    cut = {n: pick(getattr(whole.data, n), torch.arange(size)) for n, size in sizes.items()}
    return replace(whole, data=replace(whole.data, **cut))


def raced(job: Job) -> Outcomes:
    return run_race(job, TINY, lambda text, share: None)


Start = dict[str, Tensor]


@pytest.fixture(scope="module")
def watched(job: Job) -> tuple[Outcomes, list[tuple[Setup, Start]]]:
    """A race, with what its runs are built of and the weights that each starts from."""
    built: list[tuple[Setup, Start]] = []

    def kept(*args: Any, **options: Any) -> Setup:
        setup = set_up(*args, **options)
        built.append((setup, {n: t.clone() for n, t in setup.student.state_dict().items()}))
        return setup

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "set_up", kept)
        return raced(job), built


@pytest.fixture(scope="module")
def found(watched: tuple[Outcomes, Any]) -> Outcomes:
    return watched[0]


def curve(accuracy: float, loss: float) -> Curve:
    return Curve((loss,), (accuracy,), 1.0)


@pytest.mark.parametrize(
    ("curves", "wanted"),
    [
        ({0.1: [curve(0.9, 1.0)], 0.2: [curve(0.8, 0.1)]}, 0.1),
        ({0.1: [curve(0.9, 1.0)], 0.2: [curve(0.9, 0.5)]}, 0.2),
        ({0.1: [curve(0.9, math.nan)], 0.2: [curve(0.9, 9.0)]}, 0.2),
        ({0.1: [curve(0.9, 1.0), curve(0.1, 1.0)], 0.2: [curve(0.6, 1.0)] * 2}, 0.2),
    ],
    ids=["best accuracy", "tie by the loss", "diverged loses ties", "mean over seeds"],
)
def test_the_rate_is_chosen_by_mean_validation_accuracy(
    curves: dict[float, list[Curve]], wanted: float
) -> None:
    assert choose_rate(curves) == wanted


@pytest.mark.slow
def test_the_same_race_gives_the_same_accuracies(job: Job, found: Outcomes) -> None:
    """And leaves the caller's random state as it was."""
    torch.manual_seed(1234)
    state = torch.random.get_rng_state()
    again = raced(job)
    assert torch.equal(torch.random.get_rng_state(), state)
    for one, other in ((found.plain, again.plain), (found.overparam, again.overparam)):
        assert one.accuracies == other.accuracies
        assert one.validation == other.validation
        assert [c.loss for c in one.curves] == [c.loss for c in other.curves]


def test_no_choice_looks_at_the_test_part(job: Job, found: Outcomes) -> None:
    test = job.data.test
    assert isinstance(test, Table)
    wrong = Table({**test.columns, "labels": (test.columns["labels"] + 1) % 10})
    torch.manual_seed(1234)
    state = torch.random.get_rng_state()
    again = raced(replace(job, data=replace(job.data, test=wrong)))
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers"
    assert again.plain.rate == found.plain.rate
    assert again.overparam.rate == found.overparam.rate
    assert again.plain.validation == found.plain.validation
    assert again.overparam.validation == found.overparam.validation
    losses = [[c.loss for c in race.overparam.curves] for race in (again, found)]
    assert losses[0] == losses[1]
    assert again.plain.accuracies != found.plain.accuracies


def test_both_methods_start_equal_and_see_the_same_images(
    watched: tuple[Outcomes, list[tuple[Setup, Start]]],
) -> None:
    setups, starts = zip(*watched[1], strict=True)
    assert len(setups) == TINY.runs
    for place in range(0, TINY.runs, 2):
        plain, over = setups[place : place + 2]
        assert not isinstance(plain.optimizer, Overparam)
        assert isinstance(over.optimizer, Overparam)
        assert all(torch.equal(t, starts[place + 1][n]) for n, t in starts[place].items())
        assert (plain.order, plain.steps) == (over.order, over.steps)
        rates = [setup.optimizer.param_groups[0]["initial_lr"] for setup in (plain, over)]
        assert rates[0] == rates[1] == TINY.rates[place // 2 % 2]
    assert setups[0].order != setups[-1].order
    assert not torch.equal(starts[0]["fc1.weight"], starts[-1]["fc1.weight"])


def test_the_over_parameterised_student_comes_back_as_the_class_it_was(found: Outcomes) -> None:
    plain, folded = found.plain.student, found.overparam.student
    assert type(folded) is type(plain)
    assert folded.state_dict().keys() == plain.state_dict().keys()
    assert not folded.training
    assert found.plan.cost.parameters > found.plan.deployed


def test_the_callers_threads_come_back(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def stops(*_args: Any) -> Outcomes:
        seen.append(torch.get_num_threads())
        raise RuntimeError("stop")

    threads = torch.get_num_threads()
    monkeypatch.setattr(comparing, "digits_job", lambda _budget: job)
    monkeypatch.setattr(comparing, "run_race", stops)
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(RuntimeError, match="stop"):
            comparing.race(TINY, lambda text, share: None)
        assert (seen, torch.get_num_threads()) == ([1], threads + 1)
    finally:
        torch.set_num_threads(threads)


def test_a_run_learns_and_reports_each_epoch(job: Job) -> None:
    longer = job.recipe.training.model_copy(update={"epochs": 15})
    job = replace(job, recipe=job.recipe.model_copy(update={"training": longer}))
    budget = replace(TINY, rates=(0.02,), seeds=(0,))
    found = run_race(job, budget, lambda text, share: None)
    for outcome in (found.plain, found.overparam):
        (only,) = outcome.curves
        assert len(only.loss) == len(only.accuracy) == 15
        assert only.loss[-1] < only.loss[0]
        assert only.accuracy[-1] == outcome.validation[0.02][0] > 0.5


def test_the_demo_does_the_job_of_the_recipe_that_init_writes_with_chains() -> None:
    job = digits_job(Budget(teacher_epochs=1))
    recipe = job.recipe
    assert recipe.training.epochs == 15 and recipe.plan.parametrization == "md"
    assert _Racing(job).plan.entries == opdf.plan(job.make_student(0), cores=3).entries
    assert [loss.kind for loss in recipe.loss] == ["hinton", "task"]
