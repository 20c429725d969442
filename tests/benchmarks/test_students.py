"""The students have the shapes that the page states, and all forms of one train alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench import students
from bench.forms import KNOWN, build, planned
from bench.llama import Block, _rotate

import opdf_compile as opdf

CPU = torch.device("cpu")


def test_bert_has_the_12_matrices_at_scale_3_25():
    plan = opdf.plan(students.bert(2), cores=5)
    specs: list[Any] = [entry.spec for entry in plan.entries]
    modes = {(spec.shape, spec.out_modes, spec.in_modes) for spec in specs}
    assert len(plan.entries) == 12 and plan.scale == pytest.approx(3.25, abs=1e-3)
    assert modes == {
        ((768, 768), (32, 1, 1, 1, 24), (32, 1, 1, 1, 24)),
        ((3072, 768), (64, 1, 1, 1, 48), (32, 1, 1, 1, 24)),
        ((768, 3072), (32, 1, 1, 1, 24), (64, 1, 1, 1, 48)),
    }


def test_the_mlp_has_three_layers():
    student = students.student("mlp", CPU)
    shapes = {name: tuple(value.shape) for name, value in student.model.named_parameters()}
    assert [shapes[f"{place}.weight"] for place in (0, 2, 4)] == [(256, 64), (256, 256), (10, 256)]
    assert student.args[0].shape == (64, 64) and student.cores == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch", "cores", "millions"),
    [
        ("resnet", (32, 3, 64, 64), 3, 11.7),
        ("resnet32", (32, 3, 32, 32), None, 11.7),
        ("mobilenet", (16, 3, 64, 64), 3, 2.5),
        ("vit", (8, 3, 224, 224), 3, 5.7),
    ],
)
def test_the_students_of_timm_are_those_of_the_page(
    name: str, batch: tuple[int, ...], cores: int | None, millions: float
):
    student = students.student(name, CPU)
    assert student.args[0].shape == batch and student.cores == cores
    parameters = sum(value.numel() for value in student.model.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_student_is_fixed_by_its_seed():
    first, again, other = (students.student("tiny", CPU, seed) for seed in (0, 0, 1))
    assert torch.equal(first.loss(first.model), again.loss(again.model))
    assert not torch.equal(first.loss(first.model), other.loss(other.model))


def test_all_forms_give_the_same_losses():
    """Three steps in float64: what is timed is the same training."""
    student = students.student("tiny", CPU)
    student.model.double()
    wide = students.Student(
        "tiny", student.model, (student.args[0].double(),), {}, 3, student.target.double()
    )
    traced, plan = planned(wide, None)
    forms = {name: build(name, wide, traced, plan) for name in KNOWN}
    for form in forms.values():
        for _ in range(3):
            form.step(2)
    losses = {name: wide.loss(form.model).item() for name, form in forms.items()}
    # Inline AdamW decays each of 3 cores, the hoisted form W, by lr x decay = 1e-6 in each of 3
    # steps: weights that differ by 3 x 2 x 1e-6, and a loss that is quadratic in them.
    assert losses["hoisted"] == pytest.approx(losses["inline"], rel=1e-4)
    assert losses["batched"] == pytest.approx(losses["hoisted"], rel=1e-12)
    assert losses["default"] == pytest.approx(losses["hoisted"], rel=1e-12)
    assert losses["plain"] != pytest.approx(losses["hoisted"], rel=1e-12)


def test_rotary_positions_depend_on_distances_only():
    """<rotate(q)[m], rotate(k)[n]> is a function of m - n where q and k are constant."""
    torch.manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8).expand(1, 1, 6, 8) for _ in range(2))
    scores = (_rotate(q) @ _rotate(k).mT)[0, 0]
    assert torch.allclose(scores[1:, 1:], scores[:-1, :-1], atol=1e-5)
    assert not torch.allclose(scores[0], scores[0, 0].expand(6), atol=1e-3)


def test_the_block_looks_at_the_past_only():
    torch.manual_seed(0)
    block = Block(16, 24, heads=4, kv_heads=2)
    x = torch.randn(2, 5, 16)
    changed = x.clone()
    changed[:, 3:] += 1.0
    assert torch.allclose(block(x)[:, :3], block(changed)[:, :3], atol=1e-6)
    assert not torch.allclose(block(x)[:, 3:], block(changed)[:, 3:], atol=1e-2)
