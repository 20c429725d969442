"""Options that a wrapped optimizer changes by itself stay; what the user changes goes inwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.training.optimizer.looks import Look, put


class TensorRate(torch.optim.SGD):
    """Makes the rate of each group a tensor and insists on it, for a step that is compiled."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.param_groups[-1]["lr"] = torch.tensor(float(self.param_groups[-1]["lr"]))

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        if not all(isinstance(group["lr"], Tensor) for group in self.param_groups):
            raise RuntimeError("lr is no tensor any more")
        return super().step(closure)


class Estimates(torch.optim.SGD):
    """Keeps a number in its groups that grows with each step, and a mode."""

    def __init__(self, params: Any, lr: float = 0.1, count: int = 0, mode: str = "new") -> None:
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group.setdefault("count", count)
            group.setdefault("mode", mode)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            group["count"] += 1
        return super().step(closure)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


def train(model: nn.Module, opt: Any, steps: int = 1) -> None:
    for _ in range(steps):
        opt.zero_grad()
        model(torch.ones(4, 8)).square().sum().backward()
        opt.step()


def rates(opt: opdf.Overparam) -> list[float]:
    return [float(group["lr"]) for group in opt.inner.param_groups]


@pytest.mark.parametrize("batched", [False, "auto"])
def test_a_rate_that_became_a_tensor_stays_one_under_a_schedule(batched: Any) -> None:
    model, twin = network(), network()
    opt = opdf.Overparam(model, TensorRate, lr=0.5, cores=3, batched=batched, weight_decay=0.1)
    plain = opdf.Overparam(
        twin, torch.optim.SGD, lr=0.5, cores=3, batched=batched, weight_decay=0.1
    )
    schedules = [torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5) for o in (opt, plain)]
    for _ in range(3):
        train(model, opt)
        train(twin, plain)
        for schedule in schedules:
            schedule.step()
    assert isinstance(opt.param_groups[0]["lr"], Tensor)
    assert float(opt.param_groups[0]["lr"]) == 0.0625
    train(model, opt)
    train(twin, plain)
    assert rates(opt) == rates(plain) == [0.0625] * len(rates(opt))
    # A rate in float32 against one in float64: exact here, both are powers of two.
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


@pytest.mark.parametrize("way", ["number", "tensor", "written into"])
def test_a_user_may_set_a_rate_in_any_way(way: str) -> None:
    model = network()
    opt = opdf.Overparam(model, TensorRate, lr=0.5, cores=3)
    if way == "written into":
        opt.param_groups[0]["lr"].fill_(0.25)
    else:
        opt.param_groups[0]["lr"] = 0.25 if way == "number" else torch.tensor(0.25)
    train(model, opt)
    assert rates(opt) == [0.25] * len(rates(opt))


def test_what_the_class_counts_is_shown_and_never_set_back() -> None:
    model = network()
    opt = opdf.Overparam(model, Estimates, cores=3)
    assert (opt.param_groups[0]["count"], opt.param_groups[0]["mode"]) == (0, "new")
    for group in opt.inner.param_groups:
        group["mode"] = "old"
    train(model, opt, 3)
    assert {g["count"] for g in opt.inner.param_groups} == {3}
    assert (opt.param_groups[0]["count"], opt.param_groups[0]["mode"]) == (3, "old")
    opt.param_groups[0]["count"] = 10
    train(model, opt)
    assert {g["count"] for g in opt.inner.param_groups} == {11}, "what the user sets counts"


@pytest.mark.parametrize("make", [TensorRate, Estimates])
def test_a_load_brings_the_options_back_and_goes_on(make: Any) -> None:
    model = network()
    opt = opdf.Overparam(model, make, lr=0.5, cores=3)
    train(model, opt, 2)
    opt.param_groups[0]["lr"] = 0.25
    weights, state = model.state_dict(), opt.state_dict()
    again = network()
    opt2 = opdf.Overparam(again, make, lr=0.125, cores=3)
    again.load_state_dict(weights)
    opt2.load_state_dict(state)
    train(again, opt2)
    assert rates(opt2) == [0.25] * len(rates(opt2))
    assert opt2.param_groups[0].get("count", 3) == 3


def test_a_group_that_is_added_shows_what_the_class_made_of_it() -> None:
    model = network()
    last = list(model[2].parameters())
    opt = opdf.Overparam(model[0].parameters(), TensorRate, module=model, lr=0.5, cores=3)
    opt.add_param_group({"params": last, "lr": 0.25})
    assert isinstance(opt.param_groups[1]["lr"], Tensor)
    train(model, opt)
    assert float(opt.inner.param_groups[-1]["lr"]) == 0.25


@pytest.mark.parametrize("road", ["set", "loaded"])
def test_a_tensor_that_groups_share_is_not_written_to(road: str) -> None:
    """A number in one group is for that group, as under a plain optimizer."""
    shared, model = torch.tensor(0.5), network()
    groups = [{"params": list(model[place].parameters())} for place in (0, 2)]
    opt = opdf.Overparam(groups, torch.optim.SGD, module=model, lr=shared, cores=3)
    train(model, opt)
    if road == "set":
        opt.param_groups[0]["lr"] = 0.25
    else:
        state = opt.state_dict()
        for group, rate in zip(state["param_groups"], (0.25, 0.5), strict=True):
            group["lr"] = rate
        opt.load_state_dict(state)
    train(model, opt)
    places = opt._links.places
    inner = [[float(opt.inner.param_groups[p]["lr"]) for p in of] for of in places]
    assert inner == [[0.25] * len(places[0]), [0.5] * len(places[1])]
    assert [float(group["lr"]) for group in opt.param_groups] == [0.25, 0.5]
    assert float(shared) == 0.5


def test_what_counts_as_a_change() -> None:
    betas, rate = [0.9, 0.99], torch.tensor(0.1)
    assert not Look.at(betas).changed([0.9, 0.99])
    look = Look.at(betas)
    betas[0] = 0.8
    assert look.changed(betas), "a list is remembered as it was"
    look = Look.at(rate)
    assert not look.changed(rate)
    assert look.changed(rate.clone())
    rate.fill_(0.2)
    assert look.changed(rate)
    assert Look.at(0.1).changed(torch.tensor(0.1))
    with torch.inference_mode():
        assert not Look.at(made := torch.tensor(1.0)).changed(made)


def test_a_number_is_written_into_a_tensor_and_nothing_else_is() -> None:
    rate = torch.tensor(0.1)
    group: dict[str, Any] = {"lr": rate, "fused": None}
    put(group, "lr", 0.5)
    put(group, "fused", True)
    assert group["lr"] is rate and float(rate) == 0.5
    assert group["fused"] is True
    put(group, "lr", 0.25, fresh=True)
    assert float(group["lr"]) == 0.25 and float(rate) == 0.5
    put(group, "lr", None)
    assert group["lr"] is None
