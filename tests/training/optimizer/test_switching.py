"""train() and eval(): the student is where its cores are, in whole, whoever calls."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import WeightsChanged


class Averaged(torch.optim.SGD):
    """Trains a point and evaluates the mean of all points; the mode is an option of the groups."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group.setdefault("mode", "eval")

    @torch.no_grad()
    def _swap(self, mode: str) -> None:
        for group in self.param_groups:
            for p in group["params"] if group["mode"] != mode else ():
                if "other" in self.state[p]:
                    self._exchange(p, self.state[p]["other"])
            group["mode"] = mode

    def _exchange(self, p: Tensor, other: Tensor) -> None:
        held = p.clone()
        p.copy_(other)
        other.copy_(held)

    def train(self) -> None:
        self._swap("train")

    def eval(self) -> None:
        self._swap("eval")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        if self.param_groups[0]["mode"] != "train":
            raise RuntimeError("call train() first")
        moving = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        super().step(closure)
        for p in moving:
            state = self.state[p]
            state["count"] = state.get("count", 0) + 1
            state.setdefault("other", p.clone()).lerp_(p, 1 / state["count"])


class Unseen(Averaged):
    """Moves its parameters in a way that no version counter sees."""

    def _exchange(self, p: Tensor, other: Tensor) -> None:
        held = p.data.clone()
        p.data.copy_(other)
        other.copy_(held)


X = torch.linspace(-1, 1, 32).view(4, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def built(make: Any = Averaged) -> tuple[nn.Sequential, opdf.Overparam]:
    model = network()
    return model, opdf.Overparam(model, make, lr=0.1, cores=3)


def train(model: nn.Module, opt: Any, steps: int) -> None:
    for _ in range(steps):
        opt.zero_grad()
        model(X.double()).square().sum().backward()
        opt.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def is_whole(model: nn.Module, opt: opdf.Overparam) -> bool:
    """Whether the student is the fold of its cores; float64 composes it in both."""
    return all(map(torch.allclose, weights(model), opt.fold().parameters()))


@pytest.mark.parametrize("through", ["Overparam", "the wrapped optimizer"])
@pytest.mark.parametrize("make", [Averaged, Unseen])
def test_a_switch_moves_the_whole_student(make: Any, through: str) -> None:
    model, opt = built(make)
    called: Any = opt if through == "Overparam" else opt.inner
    called.train()
    train(model, opt, 4)
    point = weights(model)
    called.eval()
    mean = weights(model)
    assert not any(map(torch.equal, point, mean)), "weights and biases"
    assert is_whole(model, opt)
    called.train()
    assert all(map(torch.equal, point, weights(model)))
    train(model, opt, 1)


def test_the_mean_is_that_of_the_cores() -> None:
    model, opt = built()
    opt.train()
    path = []
    for _ in range(3):
        train(model, opt, 1)
        path.append([core.detach().clone() for core in opt.program.cores("0.weight")])
    opt.eval()
    for found, *points in zip(opt.program.cores("0.weight"), *path, strict=True):
        # Each lerp rounds a few times; float64 leaves more than twelve digits.
        assert torch.allclose(found, torch.stack(points).mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_resume_in_either_mode_is_equal_to_the_bit(mode: str) -> None:
    model, opt = built()
    opt.train()
    train(model, opt, 3)
    getattr(opt, mode)()
    saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
    again, opt2 = built()
    again.load_state_dict(saved[0])
    opt2.load_state_dict(saved[1])
    assert {g["mode"] for g in opt2.inner.param_groups} == {mode}
    for student, optimizer in ((model, opt), (again, opt2)):
        optimizer.train()
        train(student, optimizer, 2)
        optimizer.eval()
    assert all(map(torch.equal, weights(model), weights(again)))


def test_a_step_in_the_wrong_mode_says_what_the_class_says_and_moves_nothing() -> None:
    model, opt = built()
    before = weights(model)
    model(X.double()).sum().backward()
    with pytest.raises(RuntimeError, match=r"call train\(\) first"):
        opt.step()
    assert all(map(torch.equal, before, weights(model)))
    opt.train()
    opt.step()
    assert not torch.equal(before[0], model[0].weight)


def test_an_optimizer_without_modes_has_nothing_to_do() -> None:
    model, opt = built(torch.optim.SGD)
    train(model, opt, 1)
    before = weights(model)
    opt.eval()
    opt.train()
    assert all(map(torch.equal, before, weights(model)))


def test_calls_that_switch_nothing_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, opt = built()
    first = weights(model)
    opt.train()
    assert all(map(torch.equal, first, weights(model))), "before the first step"
    train(model, opt, 2)
    opt.train()
    monkeypatch.setattr(opt.program, "write", lambda keys=None: pytest.fail("W was written"))
    opt.train()


def test_weights_that_something_else_wrote_are_not_overwritten() -> None:
    model, opt = built()
    opt.train()
    train(model, opt, 2)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    held = model[0].weight.detach().clone()
    with pytest.raises(WeightsChanged):
        opt.eval()
    assert torch.equal(model[0].weight, held)
