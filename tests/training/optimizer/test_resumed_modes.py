"""A state that was saved in one mode of the class, or counts in a tensor of its groups, resumes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import opdf_compile as opdf


class TwoPoints(torch.optim.SGD):
    """Evaluates at another point than it trains; writes by a way that no version counts."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, lr=lr, momentum=0.9)
        for group in self.param_groups:
            group["train_mode"] = True

    def train(self) -> None:
        self._go(True)

    def eval(self) -> None:
        self._go(False)

    def _go(self, training: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] != training:
                for parameter in group["params"]:
                    if "momentum_buffer" in self.state[parameter]:
                        parameter.data.mul_(2.0 if training else 0.5)
            group["train_mode"] = training


class CountsInTheGroup(torch.optim.SGD):
    """Its rate falls with a count that is a tensor of each group."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            count = group.setdefault("count", torch.tensor(0.0))
            count.add_(1.0)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(count)
        return super().step(closure)


def build(kind: Any) -> tuple[nn.Module, opdf.Overparam]:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    return student, opdf.Overparam(student, kind, lr=1e-2, cores=3)


def train(student: nn.Module, optimizer: opdf.Overparam, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.train()
    for _ in range(steps):
        optimizer.zero_grad()
        student(torch.randn(8, 8, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [TwoPoints, CountsInTheGroup])
@pytest.mark.parametrize("started", [False, True])
def test_it_goes_on_bit_for_bit(kind: Any, started: bool) -> None:
    (student, optimizer), (other, again) = build(kind), build(kind)
    train(student, optimizer, 3, seed=1)
    optimizer.eval()
    if started:  # The one that loads is in its training mode then.
        again.train()
    other.load_state_dict(student.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(student, optimizer, 2, seed=2)
    before = [p.detach().clone() for p in other.parameters()]
    train(other, again, 2, seed=2)
    for left, right, was in zip(student.parameters(), other.parameters(), before, strict=True):
        assert torch.equal(left, right)
        assert not torch.equal(right, was)
