"""decay="weight": W <- (1 - lr wd) W, exactly plain decoupled decay; "cores": the optimizer's own.

The oracle is arithmetic on W alone. A power and n products round about n + 1 times, so 1e-12 of W
in float64 leaves three digits; decay of n cores by the whole factor misses by lr wd.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf

EXACT = 1e-12


def network(size: int = 12) -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, size, bias=False), nn.Linear(size, 12, bias=False)).double()


def still(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


@pytest.mark.parametrize("cores", [2, 3, 4, 5])
@pytest.mark.parametrize("batched", [False, True])
def test_zero_gradients_leave_plain_decoupled_decay(cores: int, batched: bool) -> None:
    model = network()
    start = [p.detach().clone() for p in model.parameters()]
    plain = torch.optim.AdamW([nn.Parameter(p.clone()) for p in start], lr=0.1, weight_decay=0.3)
    opt = opdf.Overparam(
        model, torch.optim.AdamW, cores=cores, batched=batched, lr=0.1, weight_decay=0.3
    )
    for _ in range(5):
        still(model)
        opt.step()
        for p in plain.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        plain.step()
    for found, wanted, at_first in zip(
        model.parameters(), plain.param_groups[0]["params"], start, strict=True
    ):
        assert relative(found, wanted) < EXACT
        assert relative(found, at_first * (1 - 0.03) ** 5) < EXACT
        assert relative(found, at_first * (1 - 0.03) ** 6) > 1e-3, "the control"


DECAYING: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "Adam": (torch.optim.Adam, {}),
    "NAdam": (torch.optim.NAdam, {}),
    "RAdam": (torch.optim.RAdam, {}),
    "Adamax": (torch.optim.Adamax, {}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "Adadelta": (torch.optim.Adadelta, {}),
    "RMSprop": (torch.optim.RMSprop, {}),
    "ASGD": (torch.optim.ASGD, {"lambd": 0.0}),
    "Adafactor": (torch.optim.Adafactor, {}),
    "AdamW fused": (torch.optim.AdamW, {"fused": True}),
    "AdamW maximize": (torch.optim.AdamW, {"maximize": True}),
    "AdamW lr tensor": (torch.optim.AdamW, {"lr": torch.tensor(0.1, dtype=torch.float64)}),
}


@pytest.mark.parametrize("name", DECAYING)
def test_decay_of_the_weight_is_the_same_under_every_optimizer(name: str) -> None:
    make, options = DECAYING[name]
    model = network()
    start = model[0].weight.detach().clone()
    opt = opdf.Overparam(model, make, cores=3, **({"lr": 0.1, "weight_decay": 0.3} | options))
    still(model)
    opt.step()
    assert relative(model[0].weight, start * (1 - 0.03)) < EXACT


def test_each_group_decays_by_its_own() -> None:
    model = network(16)
    start = [p.detach().clone() for p in model.parameters()]
    groups = [
        {"params": [model[0].weight], "lr": 0.2, "weight_decay": 0.5},
        {"params": [model[1].weight], "weight_decay": 0.0},
    ]
    opt = opdf.Overparam(groups, module=model, cores=3, lr=0.1)
    still(model)
    opt.step()
    assert relative(model[0].weight, start[0] * 0.9) < EXACT
    assert relative(model[1].weight, start[1]) < EXACT
    opt.param_groups[1]["weight_decay"] = 1.0
    opt.param_groups[1]["lr"] = 0.25
    still(model)
    opt.step()
    assert relative(model[1].weight, start[1] * 0.75) < EXACT


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("factor", [-0.5, -1.0, 0.0, 1.0])
def test_a_factor_that_is_not_positive(factor: float, batched: bool) -> None:
    model = network()
    start = [p.detach().clone() for p in model.parameters()]
    opt = opdf.Overparam(
        model, torch.optim.SGD, cores=3, batched=batched, lr=1.0, weight_decay=1.0 - factor
    )
    still(model)
    opt.step()
    for found, at_first in zip(model.parameters(), start, strict=True):
        assert (found - factor * at_first).abs().max() < EXACT * at_first.abs().max()


def test_the_cores_stay_balanced() -> None:
    model = network()
    opt = opdf.Overparam(model, torch.optim.SGD, cores=3, lr=0.1, weight_decay=1.0)
    before = [core.detach().clone() for core in opt.program.cores("0.weight")]
    still(model)
    opt.step()
    for core, at_first in zip(opt.program.cores("0.weight"), before, strict=True):
        assert relative(core, at_first * 0.9 ** (1 / 3)) < EXACT


def test_weights_without_a_gradient_do_not_decay() -> None:
    model = network()
    start = [p.detach().clone() for p in model.parameters()]
    opt = opdf.Overparam(model, cores=3, batched=True, lr=0.1, weight_decay=0.3)
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    opt.step()
    assert relative(model[0].weight, start[0] * 0.97) < EXACT
    assert relative(model[1].weight, start[1]) < EXACT


class Twice(torch.optim.SGD):
    """Evaluates twice before it steps, and trusts the closure to switch gradients on."""

    @torch.no_grad()
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        closure()
        loss = closure()
        super().step()
        return loss


def test_a_step_of_many_evaluations_decays_once() -> None:
    model = nn.Linear(12, 12, bias=False).double()
    start = model.weight.detach().clone()
    opt = opdf.Overparam(model, Twice, cores=3, lr=0.1, weight_decay=0.3)
    seen: list[Tensor] = []

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (model(torch.ones(2, 12, dtype=torch.float64)) * 0).sum()
        loss.backward()
        seen.append(model.weight.detach().clone())
        return loss

    assert opt.step(closure).requires_grad
    assert torch.equal(seen[0], start)
    assert relative(seen[1], start * 0.97) < EXACT
    assert relative(model.weight, start * 0.97) < EXACT


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_decay_of_the_cores_pulls_n_times(make: Any) -> None:
    model = network()
    start = model[0].weight.detach().clone()
    opt = opdf.Overparam(model, make, cores=3, decay="cores", lr=0.1, weight_decay=0.3)
    still(model)
    opt.step()
    # AdamW and SGD both take each core to (1 - lr wd) of itself where gradients are zero.
    assert relative(model[0].weight, start * 0.97**3) < EXACT


def test_a_bias_decays_as_the_wrapped_optimizer_does_it() -> None:
    model = nn.Linear(12, 12).double()
    start = model.bias.detach().clone()
    opt = opdf.Overparam(model, torch.optim.Adam, cores=3, lr=0.1, weight_decay=0.3)
    still(model)
    opt.step()
    # Adam adds wd * b to the gradient, so its first step is lr times the sign of b.
    assert torch.allclose(model.bias, start - 0.1 * start.sign(), atol=1e-6)


def test_decay_comes_before_the_step() -> None:
    """One step by hand: cores scaled, then moved against the gradient at the old cores."""
    model = nn.Linear(12, 12, bias=False).double()
    opt = opdf.Overparam(model, torch.optim.SGD, cores=3, lr=0.1, weight_decay=0.5)
    cores = [core.detach().clone().requires_grad_() for core in opt.program.cores("weight")]
    grad = torch.randn(12, 12, dtype=torch.float64)
    torch.einsum("aijb,bklc,cmnd->ikmjln", *cores).reshape(12, 12).backward(grad)
    wanted = [(c * 0.95 ** (1 / 3) - 0.1 * c.grad).detach() for c in cores]
    model.weight.grad = grad.clone()
    opt.step()
    for core, value in zip(opt.program.cores("weight"), wanted, strict=True):
        assert relative(core, value) < EXACT
