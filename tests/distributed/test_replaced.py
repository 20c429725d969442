"""An Overparam follows Parameters that are replaced under it: prepare(model, optimizer)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import students

CASES: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "shared out": {"shared": True},
    "cores and biases in one group": {"options": {"decay": "cores", "foreach": True}},
    "momentum": {"options": {"kind": "SGD", "lr": 0.05, "momentum": 0.9}, "before": 2},
    "AdamW after two steps": {"before": 2},
    "batched": {"options": {"batched": True}, "before": 1},
}
QUICK = {"AdamW", "shared out", "cores and biases in one group", "AdamW after two steps"}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, case in CASES.items()
    ],
)
def test_the_trajectory_is_that_of_one_process(two: Any, case: dict[str, Any]) -> None:
    found = two.run("replaced_tasks", "against_one_process", **case)
    assert students.same_bits(run["folded"] for run in found)
    for run in found:
        # Sums of a gradient run in another order; float64, eight steps.
        assert students.distance(run["folded"], run["wanted"]) < 1e-9
        # What the wrapped optimizer keeps of a bias is sharded as the bias is.
        moments = {name: kind for name, kind in run["kinds"].items() if name != "step"}
        assert set(moments.values()) == {"DTensor"}
        assert run["groups"] == 2
    start = dict(students.build().named_parameters())
    assert students.distance(found[0]["folded"], start) > 1e-2


def test_param_groups_keep_their_options(two: Any) -> None:
    for run in two.run("replaced_tasks", "with_groups"):
        assert students.distance(run["folded"], run["wanted"]) < 1e-9
        assert run["rates"] == [2e-2, 1e-2]


def test_it_can_be_folded_and_saved_before_the_first_step(two: Any, tmp_path: Path) -> None:
    for run in two.run("replaced_tasks", "at_once", folder=str(tmp_path)):
        for end in run["ends"]:
            # Folding rounds a float64 composition once.
            assert students.distance(end, run["wanted"]) < 1e-12


def test_weights_that_only_one_rank_had_are_taken_before_the_first_step(two: Any) -> None:
    for run in two.run("replaced_tasks", "other_weights", before=0):
        assert students.distance(run["folded"], run["wanted"]) < 1e-9


def test_other_weights_after_a_step_are_refused(two: Any) -> None:
    for run in two.run("replaced_tasks", "other_weights", before=1):
        assert "10 weights changed since the last refresh" in run["refused"]


def test_groups_that_hold_the_old_parameters_are_refused(two: Any) -> None:
    for sentence in two.run("replaced_tasks", "groups_left_alone"):
        assert "'first.weight' is another Parameter now" in sentence
