"""process_group=: cores and their optimizer state exist once, and every rank has the same W."""

from __future__ import annotations

from typing import Any

import pytest
import students


@pytest.fixture(scope="module")
def runs(four: Any) -> list[dict[str, Any]]:
    return four.run("shared_tasks", "against_replicated")


def test_each_weight_has_one_owner(runs: list[dict[str, Any]]) -> None:
    owned = [key for run in runs for key in run["shared"]["owned"]]
    assert sorted(owned) == sorted(runs[0]["replicated"]["owned"])
    assert len(owned) == 10


def test_a_rank_holds_a_quarter_of_cores_and_optimizer_state(runs: list[dict[str, Any]]) -> None:
    whole = runs[0]["replicated"]["held"]
    assert sum(run["shared"]["held"] for run in runs) == whole
    for run in runs:
        assert run["shared"]["held"] <= 1.1 * whole / 4
        # The count sees what replication costs.
        assert run["replicated"]["held"] == whole


def test_traffic_is_at_most_half_more_than_the_plain_students(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        assert run["shared"]["buckets"] == run["plain buckets"]
        plain = 2 * 3 / 4 * run["plain buckets"]
        assert run["shared"]["sent"] + plain <= 1.5 * plain
        matched = sum(run["shared"]["weights"][key].nbytes for key in run["replicated"]["owned"])
        # The broadcasts are counted: W once a step, for 20 steps.
        assert run["shared"]["sent"] >= 20 * 3 / 4 * matched


def test_trajectory_is_the_replicated_one(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        assert students.distance(run["shared"]["weights"], run["replicated"]["weights"]) < 1e-9
        assert students.distance(run["shared"]["folded"], run["replicated"]["folded"]) < 1e-9


def test_weights_and_folds_are_bit_equal_on_all_ranks(runs: list[dict[str, Any]]) -> None:
    assert students.same_bits(run["shared"]["weights"] for run in runs)
    assert students.same_bits(run["shared"]["folded"] for run in runs)


@pytest.mark.parametrize(
    ("kind", "batched"),
    [
        pytest.param("AdamW", True, id="AdamW, batched"),
        pytest.param("SGD", False, id="SGD, alone", marks=pytest.mark.slow),
        pytest.param("AdamW", False, id="AdamW, alone", marks=pytest.mark.slow),
        pytest.param("SGD", True, id="SGD, batched", marks=pytest.mark.slow),
    ],
)
def test_loss_scaling_clipping_and_accumulation(four: Any, kind: str, batched: bool) -> None:
    found = four.run("shared_tasks", "loop", shared=True, kind=kind, batched=batched)
    wanted = four.run("shared_tasks", "loop", shared=False, kind=kind)
    assert students.same_bits(run["weights"] for run in found)
    for run, other in zip(found, wanted, strict=True):
        assert run["scales"] == other["scales"] == [1024.0] * 2 + [512.0] * 4
        assert run["skip"] and other["skip"]
        assert students.distance(run["weights"], other["weights"]) < 1e-4
    # Clipping bites, so that it is tested.
    assert min(norm for norm in found[0]["norms"]) > 0.5


@pytest.fixture(scope="module")
def changed(four: Any) -> list[dict[str, Any]]:
    return four.run("shared_tasks", "changed_on_one_rank")


def test_a_weight_that_changed_on_one_rank_stops_all(changed: list[dict[str, Any]]) -> None:
    for run in changed:
        for call in ("step", "refresh", "fold"):
            assert "WeightsChanged: 1 of 10 weights changed since the last refresh" in run[call]
            assert "Changed: head.weight" in run[call]
        assert "InputError: the 4 ranks hold different values of 'head.weight'" in run["absorb"]
        assert run["put back"] == "no error"


def test_absorb_takes_the_same_weights_on_all_ranks(changed: list[dict[str, Any]]) -> None:
    for run in changed:
        assert run["absorbed"] == ("head.weight",)
        assert students.distance(run["folded"], run["kept"]) < 1e-12
        assert students.distance(run["trained"], run["kept"]) > 1e-3
    for what in ("kept", "folded", "trained"):
        assert students.same_bits(run[what] for run in changed)


def test_what_one_owner_refuses_all_ranks_refuse(four: Any) -> None:
    found = four.run("shared_tasks", "not_a_number")
    for run in found:
        assert "FoldError" in run["fold"] and "head.weight" in run["fold"]
        assert "InputError" in run["hoist"] and "head.weight" in run["hoist"]
        assert "InputError" in run["absorb"] and "NaN" in run["absorb"]
    assert sum("stopped: " in run["fold"] for run in found) == 3


@pytest.mark.slow
def test_pairs_of_ranks_share_programs_of_their_own(four: Any) -> None:
    found = four.run("shared_tasks", "two_groups")
    assert students.same_bits(found)
    replicated = four.run("shared_tasks", "against_replicated")[0]["replicated"]["weights"]
    assert students.distance(found[0], replicated) < 1e-9


def test_a_process_outside_the_group_is_refused(four: Any) -> None:
    *members, outside = four.run("shared_tasks", "not_a_member")
    assert members == ["member"] * 3
    assert outside.startswith("InputError: this process is no member of the process_group given")


@pytest.mark.parametrize("method", ["hyperball", pytest.param("ham", marks=pytest.mark.slow)])
def test_weights_without_cores_are_stepped_on_every_rank(four: Any, method: str) -> None:
    found = four.run("shared_tasks", "without_cores", method=method)
    assert students.same_bits(run["weights"] for run in found)
    for run in found:
        assert run["owned"] == () and run["direct"] == 10
        assert students.distance(run["weights"], run["unshared"]) < 1e-12
        assert students.distance(run["folded"], run["weights"]) == 0


def test_fewer_weights_than_ranks(four: Any) -> None:
    found = four.run("shared_tasks", "few_weights")
    assert sorted(len(run["owned"]) for run in found) == [0, 1, 1, 1]
    for run in found:
        assert students.distance(run["weights"], run["unshared"]) < 1e-9
        assert run["strides"] == (1, 8)


def test_what_cannot_be_shared_out_is_refused_on_all_ranks(four: Any) -> None:
    found = four.run("shared_tasks", "nothing_to_share")
    for run in found:
        assert run["few"].startswith("InputError: ")
        assert "nothing is left to step here" in run["few"]
        assert run["LBFGS"].startswith("InputError: LBFGS makes one direction out of all gradients")
    assert sum("stopped: " in run["few"] for run in found) == 2


def test_state_goes_back_to_its_own_rank_only(four: Any) -> None:
    for rank, run in enumerate(four.run("shared_tasks", "state")):
        assert any(
            f"holds the cores of rank {rank} only; opdf.save_checkpoint" in message
            for message in run["heard"]
        )
        assert f"holds the cores of rank {(rank + 1) % 4} of 4" in run["wrong"]
        # Not the same bits: a new DDP cuts its first step's buckets otherwise, and gloo sums rings.
        assert students.distance(run["went on"], run["resumed"]) < 1e-12
