"""Who is compared with whom: other widths, convolutions, other storage; and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from aligned_students import MAP, aligned_optimizer, network
from torch import Tensor, nn

import opdf_compile as opdf


class Convolutions(nn.Module):
    """Two convolutions, the second in groups, and a transposed linear layer."""

    def __init__(self, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, width, kernel)
        self.second = nn.Conv2d(width, 2 * width, kernel, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x)).mean((2, 3))
        return result


CONVOLUTIONS = [("first.weight", "first.weight"), ("second.weight", "second.weight")]


@pytest.mark.parametrize("cores", [2, 3, 5])
def test_a_joint_plan_compares_every_auxiliary_core_of_another_width(cores: int) -> None:
    student, teacher = network(16), network(48, seed=1)
    joint = opdf.joint_plan(student, teacher, MAP, cores=cores)
    alignment = opdf.CoreAlignment(teacher, MAP)
    aligned_optimizer(student, alignment, cores=None, plan=joint.plan)
    for entry in joint.plan.entries:
        kept = alignment.targets[entry.key]
        assert sorted(kept) == [k for k in range(cores) if k != cores // 2]
        shapes = joint.teacher[entry.key].chain.core_shapes
        assert all(tuple(target.shape) == shapes[k] for k, target in kept.items())
    assert "2 of 2 weights are aligned, 2 of them in every auxiliary core" in str(joint)
    assert str(joint.report) in str(joint)
    # It is the plan of this very module, so that param groups find it.
    assert joint.plan.model is student


def test_a_joint_plan_of_a_teacher_of_the_same_shapes_is_the_usual_one() -> None:
    student = network()
    joint = opdf.joint_plan(student, network(seed=1), MAP, cores=4)
    assert joint.plan.entries == opdf.plan(student, cores=4).entries


def test_weights_without_a_teacher_get_the_usual_modes() -> None:
    student, teacher = network(16), network(48, seed=1)
    joint = opdf.joint_plan(student, teacher, MAP[:1])
    usual = opdf.plan(student, cores=3)
    assert joint.plan.entries[1] == usual.entries[1]
    assert joint.plan.entries[0] != usual.entries[0]


@pytest.mark.parametrize("width", [4, 8])
def test_convolutions_are_aligned_with_their_kernel_whole(width: int) -> None:
    student, teacher = Convolutions(width), Convolutions(8)
    joint = opdf.joint_plan(student, teacher, CONVOLUTIONS)
    alignment = opdf.CoreAlignment(teacher, CONVOLUTIONS)
    optimizer = opdf.Overparam(
        student, torch.optim.AdamW, lr=1e-3, plan=joint.plan, alignment=alignment
    )
    for entry in joint.plan.entries:
        spec: Any = entry.spec
        assert spec.in_modes[-1] % 9 == 0
        assert sorted(alignment.targets[entry.key]) == [0, 2]
    student(torch.randn(2, 8, 9, 9)).square().mean().backward()
    optimizer.step()
    assert alignment.last is not None and alignment.last.item() > 0


def test_of_the_usual_modes_the_cores_that_differ_are_left_out_and_reported() -> None:
    student, teacher = network(16), network(48, seed=1)
    alignment = opdf.CoreAlignment(teacher, [*MAP, ("0.bias", "0.bias")])
    aligned_optimizer(student, alignment)
    rows = {row.key: row for row in alignment.report.rows}
    assert rows["0.weight"].compared == (2,)
    assert "core 0: no counterpart of equal shape (bonds [1, 12, 12, 1] and" in str(alignment)
    assert rows["0.bias"].note == "is not over-parameterised"
    assert "<td>0.bias</td>" in alignment.report._repr_html_()


@dataclass
class Map:
    """What a LayerMap looks like from here."""

    pairs: Any


@pytest.mark.parametrize(
    "given", [Map(tuple(MAP)), dict(MAP), list(MAP)], ids=["map", "dict", "list"]
)
def test_maps_of_all_kinds_are_taken_and_so_is_a_state_dict(given: Any) -> None:
    alignment = opdf.CoreAlignment(network(seed=1).state_dict(), given)
    aligned_optimizer(network(), alignment)
    assert sorted(alignment.targets) == ["0.weight", "2.weight"]


def test_a_teacher_that_stores_its_transpose_is_read_as_such() -> None:
    transformers = pytest.importorskip("transformers.pytorch_utils")
    linear = nn.Sequential(nn.Linear(12, 16)).double()
    stored = nn.Sequential(transformers.Conv1D(16, 12)).double()
    with torch.no_grad():
        stored[0].weight.copy_(linear[0].weight.mT)
    alignment = opdf.CoreAlignment(stored, MAP[:1])
    aligned_optimizer(linear, alignment)
    assert alignment.report.rows[0].start == pytest.approx(0.0, abs=1e-24)


def test_one_teacher_weight_may_guide_two_of_the_student() -> None:
    student = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
    alignment = opdf.CoreAlignment(
        nn.Sequential(nn.Linear(12, 12)), [("0.weight", "0.weight"), ("1.weight", "0.weight")]
    )
    aligned_optimizer(student, alignment)
    one, two = alignment.targets.values()
    assert all(torch.equal(one[k], two[k]) for k in one)


REFUSED: list[tuple[Any, Any, str]] = [
    (network(), [("0.weight", "9.weight")], r"teacher's weight '9.weight', .* \(did you mean"),
    (
        network(),
        [("9.weight", "0.weight")],
        r"student's weight '9.weight', the student has no such parameter",
    ),
    (network(), [("0.weight", "0.weight"), ("0.weight", "2.weight")], r"to '0.weight' and to"),
    (network(), [("0.bias", "0.bias")], r"no core can be aligned: '0.bias' is not over-"),
    (nn.Sequential(nn.Linear(7, 11)), [("0.weight", "0.weight")], r"no core can be aligned"),
    (nn.Sequential(nn.Conv1d(12, 16, 3)), [("0.weight", "0.weight")], r"its shape \[16, 12\]"),
    (network(), [], r"layer_map holds no pair"),
    (network(), [("0.weight",)], r"layer_map holds the entry \('0.weight',\)"),
    (network(), 3, r"layer_map is of type int"),
    (3, MAP, r"the teacher is of type int"),
]


@pytest.mark.parametrize(("teacher", "pairs", "sentence"), REFUSED, ids=[r[2] for r in REFUSED])
def test_what_cannot_be_aligned_is_told(teacher: Any, pairs: Any, sentence: str) -> None:
    with pytest.raises(opdf.UserError, match=sentence):
        aligned_optimizer(network(), opdf.CoreAlignment(teacher, pairs))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), True, "1"])
def test_the_weight_is_a_number_from_0_on(weight: Any) -> None:
    with pytest.raises(opdf.UserError, match="wanted a number from 0 on"):
        opdf.CoreAlignment(network(), MAP, weight=weight)


def test_a_teacher_with_nan_is_told_by_name() -> None:
    teacher = network(seed=1)
    with torch.no_grad():
        teacher[2].weight[0, 0] = float("nan")
    with pytest.raises(opdf.UserError, match="teacher's weight '2.weight' cannot be factorised"):
        aligned_optimizer(network(), opdf.CoreAlignment(teacher, MAP))


@pytest.mark.parametrize(
    ("student", "teacher", "sentence"),
    [
        (nn.Linear(14, 14), nn.Linear(11, 13), "have no outer modes in common"),
        (nn.Conv1d(8, 16, 3), nn.Conv1d(8, 16, 5), "their kernels differ"),
    ],
    ids=["sizes", "kernels"],
)
def test_a_pair_without_joint_modes_is_an_error(
    student: nn.Module, teacher: nn.Module, sentence: str
) -> None:
    with pytest.raises(opdf.UserError, match=f"no joint modes .*{sentence}"):
        opdf.joint_plan(student, teacher, [("weight", "weight")])


def test_progress_is_told_before_each_weight() -> None:
    told: list[tuple[str, int, int]] = []
    alignment = opdf.CoreAlignment(network(seed=1), MAP, progress=lambda *event: told.append(event))
    aligned_optimizer(network(), alignment)
    assert told == [("0.weight", 0, 2), ("2.weight", 1, 2)]


def test_a_map_that_does_not_fit_is_refused_before_a_weight_is_decomposed() -> None:
    told: list[str] = []
    alignment = opdf.CoreAlignment(network(), [("8.weight", "0.weight")])
    with pytest.raises(opdf.UserError, match="has no such parameter"):
        aligned_optimizer(network(), alignment, progress=lambda key, *_: told.append(key))
    assert told == []


def test_two_factors_are_a_chain_and_other_parametrizations_are_left_out() -> None:
    student = network()
    alignment = opdf.CoreAlignment(network(seed=1), MAP)
    plan = opdf.plan(student, parametrization="svd")
    aligned_optimizer(student, alignment, cores=None, plan=plan)
    assert [sorted(kept) for kept in alignment.targets.values()] == [[0], [0]]
    other = opdf.plan(student, parametrization="powerprop")
    with pytest.raises(opdf.UserError, match=r"has no chain of cores \(powerprop\)"):
        aligned_optimizer(
            network(), opdf.CoreAlignment(network(seed=1), MAP), cores=None, plan=other
        )
