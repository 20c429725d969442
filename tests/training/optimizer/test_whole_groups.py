"""Classes that keep a figure for each param group: a group stays one where nothing decays in it."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import InputError

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))


class ByGroup(torch.optim.Optimizer):
    """Divides every gradient by the running mean over all entries of its group."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "mean": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            grads = [p.grad for p in group["params"] if p.grad is not None]
            now = float(torch.cat([g.flatten() for g in grads]).abs().mean())
            group["mean"] = (group["mean"] + now) / 2
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(p.grad / max(group["mean"], 1e-6), alpha=-group["lr"])


class Together(ByGroup):
    """The same for each entry by itself, which no grouping changes."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(p.grad.sign(), alpha=-group["lr"])


def built(**options: Any) -> tuple[nn.Linear, opdf.Overparam]:
    torch.manual_seed(0)
    student = nn.Linear(12, 8)
    options = {"cores": 2, "lr": 0.05, **options}
    return student, opdf.Overparam(student, options.pop("kind", ByGroup), **options)


def step(student: nn.Module, optimizer: opdf.Overparam, *, slope: float = 1.0) -> None:
    optimizer.zero_grad()
    (slope * student(X).square().mean()).backward()
    optimizer.step()


def weights(student: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in student.parameters()])


def apart(left: Tensor, right: Tensor) -> float:
    return float(((left - right).norm() / right.norm()).detach())


def counts(optimizer: opdf.Overparam) -> list[int]:
    return [len(group["params"]) for group in optimizer.inner.param_groups]


def through_a_file(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_figure_is_over_the_whole_group_that_the_user_gave() -> None:
    student, optimizer = built()
    whole, over_all = built(decay="cores")
    assert counts(optimizer) == counts(over_all) == [3]
    for _ in range(3):
        step(student, optimizer)
        step(whole, over_all)
    assert torch.equal(weights(student), weights(whole))


def test_a_group_that_decays_is_two() -> None:
    student, optimizer = built(weight_decay=0.1)
    other, without = built()
    assert counts(optimizer) == [1, 2]
    step(student, optimizer)
    step(other, without)
    means = [group["mean"] for group in optimizer.inner.param_groups]
    (mean,) = [group["mean"] for group in without.inner.param_groups]
    assert min(means) < mean < max(means)


@pytest.mark.parametrize(
    ("kind", "decay", "told"),
    [
        (ByGroup, 0.1, True),
        (ByGroup, 0.0, False),
        (Together, 0.1, False),
        (torch.optim.SGD, 0.1, False),
    ],
)
def test_a_user_is_told_where_two_groups_are_not_one(
    kind: Any, decay: float, told: bool, caplog: Any
) -> None:
    built(kind=kind, weight_decay=decay)
    assert ("goes by its param groups" in caplog.text) is told


def test_a_group_of_planned_weights_alone_is_one(caplog: Any) -> None:
    student = nn.Linear(12, 8, bias=False)
    opdf.Overparam(student, ByGroup, cores=2, weight_decay=0.1)
    assert not caplog.text


def test_a_class_that_goes_entry_by_entry_keeps_its_two() -> None:
    _, optimizer = built(kind=torch.optim.AdamW, weight_decay=0.0)
    assert counts(optimizer) == [1, 2]


def test_decay_that_begins_later_is_that_of_the_weight() -> None:
    student, optimizer = built()
    step(student, optimizer)
    before, mean = student.weight.detach().clone(), optimizer.inner.param_groups[0]["mean"]
    optimizer.param_groups[0]["weight_decay"] = 0.5
    step(student, optimizer, slope=0.0)
    assert counts(optimizer) == [1, 2]
    assert [group["weight_decay"] for group in optimizer.inner.param_groups] == [0.5, 0.0]
    assert [group["mean"] for group in optimizer.inner.param_groups] == [mean / 2] * 2
    assert apart(student.weight, (1 - 0.05 * 0.5) * before) < 1e-6
    assert apart(student.weight, (1 - 0.05 * 0.5) ** 2 * before) > 1e-2
    optimizer.param_groups[0]["weight_decay"] = 0.0
    before = student.weight.detach().clone()
    step(student, optimizer, slope=0.0)
    assert counts(optimizer) == [3]
    assert torch.equal(student.weight, before)


@pytest.mark.parametrize(("first", "then"), [(0.0, 0.1), (0.1, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("road", ["state_dict", "checkpoint"])
def test_a_resumed_training_is_laid_out_as_it_was(
    first: float, then: float, road: str, tmp_path: Any
) -> None:
    student, optimizer = built(weight_decay=first)
    step(student, optimizer)
    optimizer.param_groups[0]["weight_decay"] = then
    step(student, optimizer)
    again, resumed = built(weight_decay=first)
    if road == "checkpoint":
        opdf.save_checkpoint(tmp_path, optimizer, step=2)
        opdf.load_checkpoint(tmp_path, resumed)
    else:
        again.load_state_dict(student.state_dict())
        resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert counts(resumed) == counts(optimizer)
    for one, of in ((student, optimizer), (again, resumed)):
        step(one, of)
        step(one, of)
    assert torch.equal(weights(student), weights(again))


def test_a_state_that_is_refused_leaves_the_layout() -> None:
    student, optimizer = built()
    step(student, optimizer)
    _, other = built(weight_decay=0.1)
    state = other.state_dict()
    state["state"][0]["cores.0"] = torch.zeros(1)
    before = weights(student)
    with pytest.raises(InputError, match="cores of shapes"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    assert torch.equal(weights(student), before)
    step(student, optimizer)
    assert counts(optimizer) == [3]
