"""The verdict and its sentence, on races made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_advice import BASE, BETTER, LIKE, advice

from opdf_compile.distill.advise.sentences import recipe_lines, recommendation


def test_a_gain_is_recommended_with_its_setting() -> None:
    found = advice(list(BASE), list(BETTER))
    assert found.verdict == "use"
    assert recommendation(found).startswith("Use md at lr 2e-05, weight decay 0.01: in equal")
    assert "enabled = true" in recipe_lines(found)


def test_a_loss_is_said() -> None:
    found = advice(list(BETTER), list(BASE))
    assert found.verdict == "do-not-use"
    assert recommendation(found).startswith("Do not use over-parameterisation here")
    assert "enabled = false" in recipe_lines(found)


def test_no_difference_says_what_it_would_take() -> None:
    found = advice(list(BASE), [*LIKE[:7], 0.82])
    assert found.verdict == "no-difference"
    assert found.comparison is not None and found.comparison.seeds_needed is not None
    assert (
        f"takes {found.comparison.seeds_needed} pairs of runs, each scored on 20"
        in recommendation(found)
    )


def test_more_pairs_than_a_race_has_are_asked_for_by_name() -> None:
    found = advice(list(BASE), [*LIKE[:7], 0.82])
    assert found.comparison is not None
    needed = found.comparison.seeds_needed
    assert needed is not None and needed > found.most_pairs
    assert f" --pairs {needed}. " in recommendation(found)
    assert "--pairs" not in recommendation(replace(found, most_pairs=needed))


def test_budget_that_would_do_holds_loading_and_two_thirds_of_the_rest() -> None:
    found = advice(list(BASE), [*LIKE[:7], 0.82])
    assert found.comparison is not None and found.comparison.seeds_needed is not None
    pair = 80.0 / 8
    needed = found.comparison.seeds_needed * pair
    assert found.seconds_needed == pytest.approx(1.5 * needed)
    assert replace(found, spent=20.0).seconds_needed == pytest.approx(20 + 1.5 * needed)


def test_equal_scores_name_no_number_of_seeds() -> None:
    found = advice(list(BASE), list(BASE))
    assert found.verdict == "no-difference"
    assert "--budget" not in recommendation(found)


@pytest.mark.parametrize("loser", ["plain", "over"])
def test_a_side_at_the_edge_has_not_lost(loser: str) -> None:
    won = advice(list(BASE), list(BETTER))
    lost = advice(list(BETTER), list(BASE))
    found = won if loser == "plain" else lost
    edge = replace(getattr(found, loser), at_edge=True)
    changed = replace(found, **{loser: edge})
    assert changed.verdict == "undecided"
    assert "--budget 240" in recommendation(changed)
    assert recipe_lines(changed) == ""
    # The winner may lie at an edge: it can only become better.
    winner = "over" if loser == "plain" else "plain"
    edge = replace(getattr(found, winner), at_edge=True)
    assert replace(found, **{winner: edge}).verdict == found.verdict


def test_a_run_that_diverged_has_lost_its_pair() -> None:
    one = advice(list(BASE), [*BETTER[:7], None])
    # 7 wins of 8: p = 0.07.
    assert (one.wins, one.verdict) == ((7, 1), "no-difference")
    many = advice(list(BASE) * 2, [*BETTER * 2][:15] + [None])
    assert (many.wins, many.verdict) == ((15, 1), "use")
    all_lost = advice(list(BASE), [None] * 8)
    assert (all_lost.wins, all_lost.verdict) == ((0, 8), "do-not-use")
    assert "8 of its runs" in recommendation(all_lost)


def test_all_runs_of_both_sides_diverged() -> None:
    found = advice([None] * 4, [None] * 4)
    assert (found.wins, found.verdict) == ((0, 0), "no-difference")
    recommendation(found)
