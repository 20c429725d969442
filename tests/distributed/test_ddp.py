"""DDP reduces the plain student's gradients and nothing else, and the ranks stay together."""

from __future__ import annotations

from typing import Any

import pytest
import students


@pytest.fixture(scope="module")
def runs(two: Any) -> list[dict[str, Any]]:
    return two.run("ddp_tasks", "trajectory")


def test_reduced_bytes_are_those_of_the_plain_student(runs: list[dict[str, Any]]) -> None:
    parameters = sum(p.numel() for p in students.build().parameters())
    for run in runs:
        assert sum(run["sizes"]["plain"]) == 20 * 8 * parameters
        assert run["sizes"]["over"] == run["sizes"]["plain"]


def test_nothing_else_is_sent(runs: list[dict[str, Any]]) -> None:
    """DDP agrees once on the order of its buckets; what else Python calls would be listed."""
    for run in runs:
        assert run["others"]["over"] == run["others"]["plain"]
        assert len(run["others"]["plain"]) <= 2


def test_trajectory_is_that_of_one_process_with_the_joined_batch(
    runs: list[dict[str, Any]],
) -> None:
    for run in runs:
        assert students.distance(run["weights"], run["alone"]) < 1e-9
        assert students.distance(run["folded"], run["alone"]) < 1e-9
        # The check sees a difference: the plain student's trajectory is another one.
        assert students.distance(run["plain"], run["alone"]) > 1e-3


def test_weights_and_cores_are_bit_equal_on_all_ranks(runs: list[dict[str, Any]]) -> None:
    assert students.same_bits(run["weights"] for run in runs)
    assert students.same_bits(run["cores"] for run in runs)


def test_ranks_that_are_not_reduced_fall_apart(two: Any) -> None:
    """What the two tests above would say of a wrong run."""
    found = two.run("ddp_tasks", "without_reduction")
    assert not students.same_bits(found)
    assert students.distance(*found) > 1e-3


def test_batch_norm_and_dropout(two: Any) -> None:
    found = two.run("ddp_tasks", "noisy")
    assert [run["kind"] for run in found] == ["Noisy", "Noisy"]
    assert students.same_bits(run["trained"] for run in found)
    start = dict(students.build(students.Noisy).named_parameters())
    assert students.distance(found[0]["trained"], start) > 1e-3


@pytest.mark.parametrize("shared", [False, True], ids=["replicated", "shared"])
def test_wrap_first_then_different_seeds_do_not_matter(two: Any, shared: bool) -> None:
    found = two.run("ddp_tasks", "order", first="ddp", shared=shared)
    assert students.same_bits(run["weights"] for run in found)


def test_wrapping_afterwards_is_noticed_where_weights_changed(two: Any) -> None:
    """DDP sends rank 0's weights: rank 1 must not step them, and rank 0 has nothing to notice."""
    first, second = two.run("ddp_tasks", "order", first="overparam", shared=False)
    assert "weights" in first
    assert "WeightsChanged: 10 weights changed since the last refresh" in second["error"]


def test_shared_out_over_different_students_is_refused_on_all_ranks(two: Any) -> None:
    for run in two.run("ddp_tasks", "order", first="overparam", shared=True):
        assert "InputError: the 2 ranks hold different values of 'first.weight'" in run["error"]
        assert "wrap it in DDP first" in run["error"]
