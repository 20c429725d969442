"""Search, timetable and holdouts, each by itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from planted_jobs import job

from opdf_compile.distill.advise.final import final
from opdf_compile.distill.advise.grid import Grid, Point, grid_of
from opdf_compile.distill.advise.holdouts import Holdout, Holdouts
from opdf_compile.distill.advise.search import Search
from opdf_compile.distill.advise.timetable import Pace, seconds_of, steps_of, timetable
from opdf_compile.distill.advise.trainer import Score, Trained
from opdf_compile.distill.recipe.schema import OptimizerSection
from opdf_compile.errors import InputError

GRID = Grid(rate=0.01, decay=0.01, start=0)


def searched(search: Search, best: dict[str, tuple[int, int]], runs: int = 120) -> Search:
    """Run a search against a hill with its top at a rate and decay of each method."""
    for number in range(runs):
        search.used = number / runs
        trial = search.ask()
        rate, decay = best[trial.point.method]
        height = -abs(trial.point.rate - rate) - abs(trial.point.decay - decay)
        search.tell(trial, Score(height + (trial.point.method == "md") * 0.5, 0.0))
    return search


@pytest.mark.parametrize("top", [(0, 0), (1, 1), (-3, 2), (10, 0), (-12, 5)])
def test_search_finds_the_top_wherever_it_lies(top: tuple[int, int]) -> None:
    search = searched(Search(["plain"], GRID), {"plain": top})
    # A top between two coarse rates is found to one place.
    assert abs(search.best.rate - top[0]) <= 1
    assert search.best.decay == top[1]
    assert not search.at_edge(search.best)


def test_search_chooses_between_methods() -> None:
    both = {"md": (-2, 0), "hyperball": (2, 1)}
    assert searched(Search(list(both), GRID), both).best == Point("md", -2, 0)


def test_search_that_ran_out_of_time_knows_that_it_is_at_an_edge() -> None:
    search = searched(Search(["plain"], GRID), {"plain": (14, 0)}, runs=5)
    assert search.at_edge(search.best)


def test_a_setting_that_diverges_is_never_the_best() -> None:
    search = Search(["plain"], GRID)
    for _ in range(40):
        trial = search.ask()
        bad = trial.point.rate > 0
        search.tell(trial, Score(-math.inf if bad else trial.point.rate / 10, 0.0))
    assert search.best.rate <= 0


def test_both_sides_are_given_the_same_seeds() -> None:
    seeds = []
    for methods in (["plain"], ["md", "hyperball"]):
        search = Search(methods, GRID)
        asked = []
        for number in range(200):
            search.used = number / 200
            trial = search.ask()
            asked.append((trial.rung, trial.seed))
            search.tell(trial, Score(-abs(trial.point.rate), 0.0))
        seeds.append(sorted(set(asked))[:5])
    assert seeds[0] == seeds[1]


def test_grid_starts_at_the_recipe_and_knows_optimizers_without_decay() -> None:
    grid = grid_of(OptimizerSection(name="AdamW", lr=2e-5, weight_decay=0.1))
    middle = Point("plain", 0, grid.start)
    assert (grid.lr(middle), grid.weight_decay(middle)) == (2e-5, 0.1)
    assert not grid_of(OptimizerSection(name="Rprop", lr=0.01)).decays


PACES = {"plain": Pace(0.0, 0.01, 0.1), "md": Pace(0.5, 0.02, 0.1)}


def test_every_run_has_the_plain_runs_time() -> None:
    time = seconds_of(1000, PACES["plain"])
    steps = steps_of("md", 1000, PACES)
    assert PACES["md"].setup + steps * PACES["md"].step == pytest.approx(time)


def test_a_step_that_costs_more_than_was_measured_leaves_both_sides_equal_time() -> None:
    paces = {"plain": Pace(0.0, 0.01, 0.0), "md": Pace(0.0, 0.02, 0.0)}

    def run(side: int, _fold: Holdout, _seed: int, steps: int) -> Trained:
        return Trained(Score(0.0, 0.0), steps, 0.0, steps * (0.01, 0.026)[side], 0.0, ())

    def steps(ahead: float) -> list[int]:
        return [100, steps_of("md", 100, paces, ahead=ahead)]

    pairs = final(
        run, steps, Holdouts(job("hurts", 0)), parts=9, left=lambda: 1.0, say=lambda _text: None
    )
    plain, over = (sum(pair.runs[side].seconds for pair in pairs) for side in (0, 1))
    assert plain == pytest.approx(9.0)
    # Without it the difference would be 9 x 0.3; one run's error stays.
    assert abs(over - plain) <= 0.35


def test_what_is_made_up_for_is_half_a_run_at_most() -> None:
    assert steps_of("md", 1000, PACES, ahead=100.0) == steps_of("md", 1500, PACES)
    assert steps_of("md", 1000, PACES, ahead=-100.0) == steps_of("md", 500, PACES)


def test_a_recipe_without_time_for_one_step_is_refused() -> None:
    with pytest.raises(InputError, match=r"md cannot take one step.* wanted at least 52 steps"):
        timetable(600.0, 6.0, 51, PACES, most_pairs=30)
    assert steps_of("md", 52, PACES) == 1
    assert timetable(600.0, 6.0, 52, PACES, most_pairs=30).steps == 52


def test_loading_counts_in_the_budget_that_a_refusal_names() -> None:
    with pytest.raises(
        InputError, match=r"of 40 s .* after loading took 30 s.* --budget (\d+)"
    ) as no:
        timetable(40.0, 32.0, 1000, PACES, most_pairs=30, spent=30.0)
    named = float(str(no.value).split("--budget ")[1].split(",")[0])
    assert timetable(named, 32.0, 1000, PACES, most_pairs=30, spent=30.0).pairs >= 8
    with pytest.raises(InputError):
        timetable(named - 25, 32.0, 1000, PACES, most_pairs=30, spent=30.0)


def test_two_thirds_of_an_ample_budget_go_to_the_final() -> None:
    table = timetable(600.0, 6.0, 1000, PACES, most_pairs=100)
    assert table.steps == 1000
    assert table.pairs * 2 * (10.0 + 0.1) <= 2 / 3 * 600 < (table.pairs + 1) * 2 * (10.0 + 0.1)
    assert 6.0 + 2 * table.tuning + 2 / 3 * 600 == pytest.approx(600)


def test_a_budget_too_small_for_whole_runs_shortens_them() -> None:
    table = timetable(300.0, 6.0, 10_000, PACES, most_pairs=30)
    assert 30 <= table.steps < 10_000
    assert table.pairs >= 8


def test_the_budget_that_a_refusal_names_is_enough() -> None:
    with pytest.raises(InputError, match=r"give --budget (\d+)") as refused:
        timetable(10.0, 2.0, 1000, PACES, most_pairs=30)
    named = float(str(refused.value).split("--budget ")[1].split(",")[0])
    assert timetable(named, 2.0, 1000, PACES, most_pairs=30).pairs >= 8


def test_final_scores_what_no_tuning_run_was_scored_on() -> None:
    for name, mixed in (("own.py:data", False), ("digits", True)):
        holdouts = holdouts_of(name)
        assert holdouts.mixed is mixed
        tuned = set(holdouts.tuning().score.tolist())
        for place in (0, 7):
            holdout = holdouts.final(place, 8)
            assert not tuned & set(holdout.score.tolist())
            assert not set(holdout.train.tolist()) & set(holdout.score.tolist())


@pytest.mark.parametrize("name", ["own.py:data", "digits"])
def test_no_example_is_scored_by_two_pairs(name: str) -> None:
    holdouts = holdouts_of(name)
    for wanted in (2, 8, 30, 10_000):
        parts = holdouts.parts(wanted)
        scored = [i for place in range(parts) for i in holdouts.final(place, parts).score.tolist()]
        assert len(scored) == len(set(scored)) == parts * holdouts.size_of(parts)
    assert holdouts.parts(10_000) == {"own.py:data": 100, "digits": 300}[name]


def holdouts_of(source: str) -> Holdouts:
    """300 training examples and 200 for validation, of their own or a share of one set."""
    given = job("hurts", 0)
    section = given.recipe.data.model_copy(update={"source": source})
    return Holdouts(replace(given, recipe=given.recipe.model_copy(update={"data": section})))


def test_validation_part_of_three_examples_is_refused() -> None:
    given = job("hurts", 0)
    few = replace(given.data, validation=[given.data.validation[i] for i in range(3)])
    with pytest.raises(InputError, match="has 3 examples, wanted at least 4"):
        Holdouts(replace(given, data=few))
