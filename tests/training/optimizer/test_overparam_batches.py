"""Batches that are taken apart: a weight without a gradient is left alone, as torch leaves it.

The oracle is the same optimizer without batching, float64. Both do the same arithmetic but for the
order of sums in a batched product: 1e-12 of the weight.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf

X = torch.randn(8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Experts(nn.Module):
    """Three experts of one form; the first axis of the input names those that are called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.experts = nn.ModuleList(nn.Linear(12, 12, bias=False) for _ in range(3)).double()

    def forward(self, x: Tensor, called: tuple[int, ...]) -> Tensor:
        total = sum(self.experts[place](x) for place in called)
        assert isinstance(total, Tensor)
        return torch.tanh(total)


OPTIMIZERS = {
    "AdamW": (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1}),
    "AdamW amsgrad": (torch.optim.AdamW, {"lr": 0.05, "amsgrad": True}),
    "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "NAdam": (torch.optim.NAdam, {"lr": 0.05}),
    "ASGD": (torch.optim.ASGD, {"lr": 0.05, "t0": 1}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.05}),
    "Rprop": (torch.optim.Rprop, {"lr": 0.01}),
}
SCHEDULE = [(0, 1, 2), (0, 1, 2), (0, 2), (1,), (0, 1, 2), (0,)]


def run(name: str, batched: bool, calls: Any) -> tuple[Experts, opdf.Overparam]:
    make, options = OPTIMIZERS[name]
    model = Experts()
    opt = opdf.Overparam(model, make, cores=3, batched=batched, **options)
    for called in calls:
        opt.zero_grad()
        model(X, called).square().mean().backward()
        opt.step()
    return model, opt


def difference(left: Experts, right: Experts) -> float:
    return max(
        float(((a - b).abs().max() / b.abs().max()).detach())
        for a, b in zip(left.parameters(), right.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_experts_that_are_not_called_rest(name: str) -> None:
    batched, opt = run(name, True, SCHEDULE)
    apart, _opt = run(name, False, SCHEDULE)
    assert [unit.batched for unit in opt.program.units] == [False] * 3
    assert difference(batched, apart) < 1e-12
    otherwise, _opt = run(name, False, [(0, 1, 2)] * len(SCHEDULE))
    assert difference(otherwise, apart) > 1e-3, "the control: it matters who is called"


def test_a_batch_stays_while_all_its_weights_go_the_same_way() -> None:
    _model, opt = run("AdamW", True, [(0, 1, 2)] * 3)
    assert [unit.batched for unit in opt.program.units] == [True]
    assert [len(group["params"]) for group in opt.inner.param_groups] == [3]


def test_a_weight_frozen_later_rests(caplog: pytest.LogCaptureFixture) -> None:
    model, opt = run("AdamW", True, [(0, 1, 2)] * 3)
    model.experts[1].requires_grad_(False)
    frozen = model.experts[1].weight.detach().clone()
    moving = model.experts[0].weight.detach().clone()
    with caplog.at_level(logging.INFO, logger="opdf_compile"):
        for _ in range(3):
            opt.zero_grad()
            model(X, (0, 1, 2)).square().mean().backward()
            opt.step()
    # A product of one chain may round otherwise than a batch of three did, once.
    assert torch.allclose(model.experts[1].weight, frozen, rtol=0, atol=1e-14)
    assert (model.experts[0].weight - moving).abs().max() > 1e-3
    assert [r.getMessage() for r in caplog.records] == [
        "the batch of experts.0.weight and 2 more weights is taken apart: only some of them have a "
        "gradient or a state like the others'"
    ]
    # Thawed, it goes on from where it was.
    model.experts[1].requires_grad_(True)
    opt.zero_grad()
    model(X, (0, 1, 2)).square().mean().backward()
    opt.step()
    assert (model.experts[1].weight - frozen).abs().max() > 1e-3


def test_taking_a_batch_apart_moves_no_value() -> None:
    _model, opt = run("AdamW", True, [(0, 1, 2)] * 3)
    before = {n: {k: v.clone() for k, v in s.items()} for n, s in opt.state_by_name().items()}
    opt.take_apart(opt.program.units[0])
    after = opt.state_by_name()
    assert after.keys() == before.keys()
    for name, kept in before.items():
        assert kept.keys() == after[name].keys()
        assert all(torch.equal(value, after[name][key]) for key, value in kept.items())
    steps = {id(after[n]["cores.0.step"]) for n in after}
    assert len(steps) == 3, "each counts its own steps from now on"
    shown = opt.state[opt.program.module.experts[2].weight]["cores.0"]
    assert shown.data_ptr() == opt.program.cores("experts.2.weight")[0].data_ptr()
    assert [len(group["params"]) for group in opt.inner.param_groups] == [9]


def test_a_state_whose_members_differ_takes_the_batch_apart() -> None:
    model, opt = run("AdamW", False, SCHEDULE)
    steps = [int(opt.state_by_name()[f"experts.{i}.weight"]["cores.0.step"]) for i in range(3)]
    assert len(set(steps)) > 1
    twin = Experts()
    twin.load_state_dict(model.state_dict())
    again = opdf.Overparam(twin, torch.optim.AdamW, cores=3, batched=True)
    again.load_state_dict(opt.state_dict())
    assert [unit.batched for unit in again.program.units] == [False] * 3
    for net, optimizer in ((model, opt), (twin, again)):
        optimizer.zero_grad()
        net(X, (0, 1, 2)).square().mean().backward()
        optimizer.step()
    assert difference(model, twin) == 0.0


def test_a_first_step_may_miss_some() -> None:
    batched, _opt = run("AdamW", True, [(0,), (0, 1)])
    apart, _opt = run("AdamW", False, [(0,), (0, 1)])
    assert difference(batched, apart) < 1e-12
    # It had no gradient in any step: no decay, no momentum, but for the rounding of one compose.
    rest = Experts().experts[2].weight
    assert torch.allclose(batched.experts[2].weight, rest, rtol=0, atol=1e-14)


def test_one_group_is_one_batch_at_most() -> None:
    model = Experts()
    groups = [
        {"params": [model.experts[0].weight]},
        {"params": [model.experts[1].weight, model.experts[2].weight], "lr": 0.0},
    ]
    opt = opdf.Overparam(groups, module=model, cores=3, batched=True, lr=0.1)
    assert [unit.keys for unit in opt.program.units] == [
        ("experts.0.weight",),
        ("experts.1.weight", "experts.2.weight"),
    ]
    before = model.experts[1].weight.detach().clone()
    model(X, (0, 1, 2)).square().mean().backward()
    opt.step()
    assert torch.allclose(model.experts[1].weight, before, rtol=0, atol=1e-14)
    assert not torch.allclose(model.experts[0].weight, Experts().experts[0].weight)


def test_a_closure_may_leave_weights_out() -> None:
    results = []
    for batched in (True, False):
        model = Experts()
        opt = opdf.Overparam(model, torch.optim.AdamW, cores=3, batched=batched, lr=0.05)
        for called in SCHEDULE:

            def closure(net: Any = model, used: Any = opt, called: Any = called) -> Tensor:
                used.zero_grad()
                loss = net(X, called).square().mean()
                loss.backward()
                return loss

            opt.step(closure)
        results.append(model)
    assert difference(*results) < 1e-12


def test_a_compiled_batch_is_taken_apart_into_compiled_units() -> None:
    student = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    opt = opdf.Overparam(student, torch.optim.AdamW, lr=1e-2, cores=3, batched=True)
    opt.program.compile(backend="eager")
    (batch,) = opt.program.units
    student[0](torch.randn(2, 8)).sum().backward()
    opt.step()
    assert len(opt.program.units) == 2 and batch not in opt.program.units
    assert [unit.compiled_with for unit in opt.program.units] == [{"backend": "eager"}] * 2
