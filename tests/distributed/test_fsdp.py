"""FSDP2: sharded weights are gathered, pulled, composed and cut; the root may be unsharded."""

from __future__ import annotations

from typing import Any

import pytest
import students

CASES: dict[str, dict[str, Any]] = {
    "eval between": {"between": True},
    "one group": {"layout": {"nested": False}, "between": True},
    "reshard after forward": {"layout": {"reshard_after_forward": True}},
    "keep after forward": {"layout": {"reshard_after_forward": False}, "between": True},
    "reshard to one": {"layout": {"reshard_after_forward": 1}, "between": True},
    "clipping": {"clip": 0.2},
    "SGD": {"options": {"kind": "SGD", "momentum": 0.9, "lr": 0.1}},
    "foreach": {"options": {"foreach": True}},
    "cores decay": {"options": {"decay": "cores", "foreach": True}},
    "batched": {"options": {"batched": True}},
    "recompute": {"options": {"recompute": True}},
    "shared": {"shared": True, "between": True},
    "hyperball": {"options": {"method": "hyperball"}, "between": True},
    "ham": {"options": {"method": "ham", "foreach": True}},
    "hyperball and shared": {"options": {"method": "hyperball"}, "shared": True},
    "md": {"options": {"method": "md"}},
    "shared and clipping": {"shared": True, "clip": 0.2},
}


QUICK = {"eval between", "shared", "clipping", "cores decay"}


BOTH = pytest.mark.parametrize(
    "shared",
    [
        pytest.param(False, id="replicated", marks=pytest.mark.slow),
        pytest.param(True, id="shared"),
    ],
)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, case in CASES.items()
    ],
)
def test_folds_to_the_weights_of_one_process(two: Any, case: dict[str, Any]) -> None:
    found = two.run("fsdp_tasks", "against_one_process", **case)
    assert students.same_bits(run["folded"] for run in found)
    for run in found:
        assert students.distance(run["folded"], run["wanted"]) < 1e-9
        # What the sharded student computes is what the folded one says.
        assert float((run["seen"] - run["says"]).abs().max()) < 1e-12
        assert run["norms"] == pytest.approx(run["wanted norms"], rel=1e-9)
    # The 7 rows of the head do not divide by 2.
    assert [run["uneven"] for run in found] == [[[4, 24]], [[3, 24]]]
    if "clip" in case:
        assert min(found[0]["norms"]) > case["clip"]


@pytest.mark.slow
def test_the_test_above_fails_without_reshard(two: Any) -> None:
    """The root is unsharded after an eval forward: what is written to its shards is lost."""
    try:
        found = two.run(
            "fsdp_tasks", "against_one_process", between=True, resharding=False, timeout=60.0
        )
    except AssertionError as failed:
        assert "fsdp_tasks.against_one_process" in str(failed)
        return
    finally:
        two.stop()
    assert students.distance(found[0]["folded"], found[0]["wanted"]) > 1e-3


@pytest.mark.slow
@BOTH
def test_a_mesh_of_two_axes(four: Any, shared: bool) -> None:
    """HSDP: shards within pairs, copies across."""
    found = four.run("fsdp_tasks", "against_one_process", layout={"dims": 2}, shared=shared)
    for run in found:
        assert students.distance(run["folded"], run["wanted"]) < 1e-9


@BOTH
def test_a_shard_that_changed_on_one_rank_stops_all(two: Any, shared: bool) -> None:
    for run in two.run("fsdp_tasks", "changed_on_one_rank", shared=shared):
        for call in ("step", "fold"):
            assert "WeightsChanged: 1 of 10 weights changed" in run[call]
            assert "Changed: first.weight" in run[call]
        assert run["absorbed"] == ("first.weight",)
        assert float((run["folded"] - run["kept"]).abs().max()) < 1e-12


def test_fold_asks_for_a_student_to_fill(two: Any) -> None:
    for run in two.run("fsdp_tasks", "without_into"):
        for message in run:
            assert message.startswith("FoldError: the FSDPSmooth is sharded")
            assert "fold(program, into=student)" in message


def test_an_optimizer_that_is_built_after_an_eval_forward(two: Any) -> None:
    for run in two.run("fsdp_tasks", "late"):
        assert run["planned"] == 10
        assert students.distance(run["folded"], run["wanted"]) < 1e-9


@pytest.mark.parametrize(
    ("shared", "after_eval"),
    [
        pytest.param(False, False, id="replicated, at once", marks=pytest.mark.slow),
        pytest.param(False, True, id="replicated, after eval"),
        pytest.param(True, False, id="shared, at once"),
        pytest.param(True, True, id="shared, after eval", marks=pytest.mark.slow),
    ],
)
def test_state_of_sharded_parameters_is_taken_up(two: Any, after_eval: bool, shared: bool) -> None:
    for run in two.run("fsdp_tasks", "resume", after_eval=after_eval, shared=shared):
        assert run["kind"] == "DTensor"
        assert students.same_bits([run["went on"], run["resumed"]])


@BOTH
def test_mixed_precision(two: Any, shared: bool) -> None:
    """bfloat16 has 8 bits: gradients differ by about 2^-8, and so do 8 steps of 1e-2."""
    for run in two.run("fsdp_tasks", "mixed_precision", shared=shared):
        start = students.weights(students.build(dtype=run["half"]["first.weight"].dtype))
        for name in ("first.weight", "head.weight"):
            error = (run["half"][name] - run["single"][name]).norm()
            moved = (run["single"][name] - start[name]).norm()
            assert 0 < float(error) < 0.2 * float(moved)


def test_an_overflow_on_one_rank_is_skipped_by_all(two: Any) -> None:
    for run in two.run("fsdp_tasks", "loss_scaling"):
        assert run["scales"] == [1024.0, 512.0, 512.0]
        assert run["moved"] == [True, False, True]


@BOTH
def test_batch_norm_and_dropout(two: Any, shared: bool) -> None:
    found = two.run("fsdp_tasks", "noisy", shared=shared)
    assert [run["kind"] for run in found] == ["Noisy", "Noisy"]
    assert students.same_bits(run["trained"] for run in found)
    start = dict(students.build(students.Noisy).named_parameters())
    assert students.distance(found[0]["trained"], start) > 1e-3


def test_a_bare_program(two: Any) -> None:
    for run in two.run("fsdp_tasks", "bare_program"):
        assert students.distance(run["folded"], run["wanted"]) < 1e-9
