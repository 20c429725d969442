"""A trainer that saves averaged weights and optimizer states in half precision, and resumes both.

Trainers of detectors do. What they put into the student is neither what the cores make nor what any
step made; the step says so, and `absorb()` goes on from it.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf


def build() -> tuple[nn.Sequential, opdf.Overparam]:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return student, opdf.Overparam(student, torch.optim.AdamW, lr=1e-2, cores=3)


def step(student: nn.Module, optimizer: opdf.Overparam) -> None:
    optimizer.zero_grad()
    student(torch.ones(5, 8)).square().mean().backward()
    optimizer.step()


def halved(value: Any) -> Any:
    """Every float tensor in half precision, as such a trainer writes it."""
    if isinstance(value, Tensor):
        return value.half() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: halved(part) for name, part in value.items()}
    return [halved(part) for part in value] if isinstance(value, list) else value


@pytest.fixture
def resumed() -> tuple[nn.Sequential, opdf.Overparam]:
    student, optimizer = build()
    average = copy.deepcopy(student)
    step(student, optimizer)
    for mean, weight in zip(average.parameters(), student.parameters(), strict=True):
        mean.data.lerp_(weight.data, 0.5)
    weights, state = halved(average.state_dict()), halved(optimizer.state_dict())
    student, optimizer = build()
    student.load_state_dict(weights)
    optimizer.load_state_dict(state)
    return student, optimizer


def test_the_step_says_that_the_weights_are_others(
    resumed: tuple[nn.Sequential, opdf.Overparam],
) -> None:
    student, optimizer = resumed
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(opdf.WeightsChanged, match=r"Keep them: absorb\(\)"):
        step(student, optimizer)
    assert all(torch.equal(before[name], t) for name, t in student.state_dict().items())


def test_absorb_goes_on_from_the_restored_weights(
    resumed: tuple[nn.Sequential, opdf.Overparam],
) -> None:
    student, optimizer = resumed
    restored = copy.deepcopy(student.state_dict())
    optimizer.absorb()
    shipped = opdf.fold(optimizer).state_dict()
    # The restored weights are the truth: what the cores make of them is theirs within rounding.
    for name, weight in restored.items():
        torch.testing.assert_close(shipped[name], weight, rtol=1e-6, atol=1e-7)
    step(student, optimizer)
    assert all(not torch.equal(restored[name], t) for name, t in student.state_dict().items())
    cores = [core for unit in optimizer.program.units for core in unit.storage]
    assert all(core.dtype == torch.float32 for core in cores)
