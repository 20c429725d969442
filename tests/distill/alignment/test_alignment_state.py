"""Resume: the loss goes on against the very cores that the student was aligned to."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from aligned_students import MAP, aligned_optimizer, network, train, weights
from torch import nn

import opdf_compile as opdf


def near(teacher: nn.Module) -> nn.Module:
    """The same teacher as another machine would decompose it: rounded otherwise."""
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1e-7 * torch.randn_like(p))
    return other


def built(student: nn.Module, teacher: nn.Module, **options: Any) -> opdf.Overparam:
    return aligned_optimizer(student, opdf.CoreAlignment(teacher, MAP), **options)


def orthogonal() -> nn.Sequential:
    """A teacher whose cores no rounding leaves alone: all singular values are equal."""
    teacher = network(12, seed=1)
    for layer in (teacher[0], teacher[2]):
        nn.init.eye_(layer.weight)
    return teacher


@pytest.mark.parametrize("batched", [False, True])
def test_a_state_dict_resumes_bit_by_bit(batched: bool) -> None:
    teacher = orthogonal()
    student = network(12)
    optimizer = built(student, teacher, batched=batched)
    train(student, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": student.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(student, optimizer, 3, first=3)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = network(12, seed=5)
    resumed = built(again, near(teacher), batched=batched)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(again, resumed, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(student), strict=True))


def test_a_state_of_batches_loads_where_there_are_none() -> None:
    teacher = orthogonal()
    student, again = network(12), network(12, seed=5)
    optimizer = built(student, teacher, batched=True)
    train(student, optimizer, 3)
    resumed = built(again, near(teacher), batched=False)
    again.load_state_dict(student.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    for trained, stepped in ((student, optimizer), (again, resumed)):
        train(trained, stepped, 3, first=3)
    for a, b in zip(weights(again), weights(student), strict=True):
        assert (a - b).norm() <= 1e-12 * b.norm()


def test_a_checkpoint_resumes_bit_by_bit(tmp_path: Path) -> None:
    teacher = orthogonal()
    student = network(12)
    optimizer = built(student, teacher)
    train(student, optimizer, 3)
    opdf.save_checkpoint(tmp_path, optimizer, step=3)
    train(student, optimizer, 3, first=3)

    again = network(12, seed=5)
    resumed = built(again, near(teacher))
    assert opdf.load_checkpoint(tmp_path, resumed).step == 3
    train(again, resumed, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(student), strict=True))
    assert torch.equal(resumed.alignment.last, optimizer.alignment.last)


def test_what_was_loaded_stays_when_a_weight_is_taken_from_outside() -> None:
    teacher = orthogonal()
    student, again = network(12), network(12, seed=5)
    optimizer = built(student, teacher)
    train(student, optimizer, 1)
    resumed = built(again, near(teacher))
    again.load_state_dict(student.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    with torch.no_grad():
        again[0].weight.mul_(1.5)
    assert resumed.absorb() == ("0.weight",)
    kept = optimizer.alignment.state_by_name()
    for key, cores in resumed.alignment.state_by_name().items():
        assert all(torch.equal(core, kept[key][name]) for name, core in cores.items())


def test_the_state_matters_decomposing_the_teacher_again_would_jump() -> None:
    """What the two tests above would not see if the teacher's cores were stable by themselves."""
    teacher = orthogonal()
    student = network(12)
    optimizer = built(student, teacher)
    train(student, optimizer, 1)
    state = optimizer.alignment.state_by_name()["0.weight"]
    other = built(network(12), near(teacher)).alignment.state_by_name()["0.weight"]
    assert (state["teacher.0"] - other["teacher.0"]).norm() > 0.1 * state["teacher.0"].norm()


def test_a_state_without_alignment_is_refused_and_nothing_changes() -> None:
    student = network()
    plain = aligned_optimizer(student, None)
    train(student, plain, 2)
    other = network(seed=5)
    optimizer = built(other, network(seed=1))
    before = [core.detach().clone() for core in optimizer.program.cores("0.weight")]
    with pytest.raises(opdf.UserError, match="was saved with another alignment or none"):
        optimizer.load_state_dict(plain.state_dict())
    after = optimizer.program.cores("0.weight")
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    train(other, optimizer, 1)


def test_a_state_with_alignment_loads_without_one() -> None:
    student = network()
    optimizer = built(student, network(seed=1))
    train(student, optimizer, 2)
    other = network(seed=5)
    plain = aligned_optimizer(other, None)
    other.load_state_dict(student.state_dict())
    plain.load_state_dict(optimizer.state_dict())
    train(other, plain, 1, first=2)
    assert "teacher.0" not in plain.state_dict()["state"][0]
