"""Learning rates of single cores, and decay of weights that are sums or powers.

A parametrization of this file's own, W = R + A B with A three times as fast; the oracle is SGD by
hand: R <- R - lr G, A <- A - 3 lr G B^T, B <- B - lr A^T G.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import PlanError
from opdf_compile.parametrizations import matrix_spec, registry
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm
from opdf_compile.parametrizations.mpo import Mpo
from opdf_compile.tensor.cost import Cost

RANK = 2


class Sum(Mpo):
    """Residual and product of rank 2, as small as a parametrization can be."""

    def decompose(self, weight: Tensor, spec: Any, *, device: Any = None) -> tuple[Tensor, ...]:
        u, s, vt = torch.linalg.svd(weight.detach().double(), full_matrices=False)
        left, right = u[:, :RANK] * s[:RANK].sqrt(), s[:RANK].sqrt()[:, None] * vt[:RANK]
        return tuple(t.to(weight.dtype) for t in (weight.detach() - left @ right, left, right))

    def compose(self, tensors: Any, spec: Any) -> Tensor:
        residual, left, right = tensors
        return (residual + left @ right).to(getattr(torch, spec.dtype))

    def core_names(self, key: str, spec: Any) -> tuple[str, ...]:
        return tuple(f"{key}_cores.{k}" for k in range(3))

    def shapes(self, spec: Any) -> tuple[tuple[int, ...], ...]:
        rows, cols = spec.shape
        return (rows, cols), (rows, RANK), (RANK, cols)

    def cost(self, spec: Any) -> Cost:
        return Cost(parameters=sum(a * b for a, b in self.shapes(spec)), added=RANK * 24)

    def propose(self, form: WeightForm, *, cores: int = 3) -> Any:
        return MatrixSpec.of(form)

    def spec_to_json(self, spec: Any) -> dict[str, object]:
        return matrix_spec.to_json(spec)

    def terms(self, spec: Any) -> tuple[dict[int, float], ...]:
        return {0: 1.0}, {1: 0.5, 2: 0.5}

    def rates(self, spec: Any) -> tuple[float, ...]:
        return RATES


RATES = (1.0, 3.0, 1.0)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = {"mpo": registry.registered("mpo"), "sum": Sum(name="sum")}
    monkeypatch.setattr(registry, "_REGISTERED", known)
    yield


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12)).double()


def made(model: nn.Module, **options: Any) -> opdf.Overparam:
    plan = opdf.plan(model, parametrization="sum")
    return opdf.Overparam(model, torch.optim.SGD, plan=plan, **options)


def step(model: nn.Module, opt: Any) -> list[Tensor]:
    """One step on a loss that is linear in both weights; their gradients."""
    grads = [torch.sin(torch.arange(144.0).double() + k).reshape(12, 12) for k in (0, 1)]
    for place, grad in enumerate(grads):
        model[place].weight.grad = grad.clone()
        model[place].bias.grad = torch.ones(12).double()
    opt.step()
    return grads


def by_hand(cores: list[Tensor], grad: Tensor, lr: float, rate: float) -> list[Tensor]:
    residual, left, right = cores
    return [residual - lr * grad, left - rate * lr * grad @ right.mT, right - lr * left.mT @ grad]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("decay", ["weight", "cores"])
def test_sgd_steps_each_core_at_its_own_rate(batched: bool, decay: Any) -> None:
    model = network()
    opt = made(model, lr=0.1, batched=batched, decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    keys = ["0.weight", "1.weight"]
    wanted = [[core.detach().clone() for core in opt.program.cores(key)] for key in keys]
    wrong = copy.deepcopy(wanted)
    bias = model[0].bias.detach().clone()
    for lr in (0.1, 0.05, 0.025):
        grads = step(model, opt)
        schedule.step()
        wanted = [by_hand(c, g, lr, 3.0) for c, g in zip(wanted, grads, strict=True)]
        wrong = [by_hand(c, g, lr, 1.0) for c, g in zip(wrong, grads, strict=True)]
        bias = bias - lr
    for key, cores, others in zip(keys, wanted, wrong, strict=True):
        found = opt.program.cores(key)
        for core, value in zip(found, cores, strict=True):
            torch.testing.assert_close(core.detach(), value, rtol=1e-12, atol=1e-12)
        assert (found[1] - others[1]).abs().max() > 1e-2, "the control: one rate for all"
    torch.testing.assert_close(model[0].bias.detach(), bias, rtol=1e-12, atol=1e-12)


def test_a_learning_rate_that_is_a_tensor() -> None:
    model, rate = network(), torch.tensor(0.1, dtype=torch.float64)
    opt = made(model, lr=rate)
    wanted = [core.detach().clone() for core in opt.program.cores("0.weight")]
    for lr in (0.1, 0.02):
        rate.fill_(lr)
        grads = step(model, opt)
        wanted = by_hand(wanted, grads[0], lr, 3.0)
    for core, value in zip(opt.program.cores("0.weight"), wanted, strict=True):
        torch.testing.assert_close(core.detach(), value, rtol=1e-12, atol=1e-12)


def test_a_run_resumes_with_its_rates() -> None:
    model = network()
    opt = made(model, lr=0.1, momentum=0.9)
    step(model, opt)
    saved, weights = copy.deepcopy(opt.state_dict()), copy.deepcopy(model.state_dict())
    other = network()
    resumed = made(other, lr=0.3, momentum=0.9)
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    for group in (*opt.param_groups, *resumed.param_groups):
        group["lr"] = 0.05
    for own, theirs in ((model, opt), (other, resumed)):
        step(own, theirs)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert sorted({group["lr"] for group in resumed.inner.param_groups}) == pytest.approx(
        [0.05, 0.15]
    )


def test_groups_keep_their_rates_apart() -> None:
    model = network()
    plan = opdf.plan(model, parametrization="sum")
    groups = [
        {"params": list(model[0].parameters()), "lr": 0.1},
        {"params": list(model[1].parameters()), "lr": 0.01},
    ]
    opt = opdf.Overparam(groups, torch.optim.SGD, plan=plan, module=model, lr=1.0, batched=True)
    before = [core.detach().clone() for core in opt.program.cores("1.weight")]
    grads = step(model, opt)
    wanted = by_hand(before, grads[1], 0.01, 3.0)
    for core, value in zip(opt.program.cores("1.weight"), wanted, strict=True):
        torch.testing.assert_close(core.detach(), value, rtol=1e-12, atol=1e-12)


def test_a_batch_that_is_taken_apart_keeps_its_rates() -> None:
    model = network()
    opt = made(model, lr=0.1, batched=True)
    wanted = [core.detach().clone() for core in opt.program.cores("1.weight")]
    for both in (True, False):
        grads = [torch.cos(torch.arange(144.0).double() + k).reshape(12, 12) for k in (0, 1)]
        model[0].weight.grad = grads[0] if both else None
        model[1].weight.grad = grads[1].clone()
        opt.step()
        wanted = by_hand(wanted, grads[1], 0.1, 3.0)
    assert len(opt.program.units) == 2
    for core, value in zip(opt.program.cores("1.weight"), wanted, strict=True):
        torch.testing.assert_close(core.detach(), value, rtol=1e-12, atol=1e-12)


def test_the_summary_tells_of_them() -> None:
    opt = made(network(), lr=0.1)
    assert "some cores learn at a rate of their own: 3 times the group's" in str(opt.summary())
    plain = opdf.Overparam(network(), torch.optim.SGD, cores=3, lr=0.1)
    assert "rate of their own" not in str(plain.summary())


@pytest.mark.parametrize(("lr", "factor"), [(0.1, 0.97), (10.0, -2.0)])
def test_decay_of_a_sum_is_plain_decay_of_the_weight(lr: float, factor: float) -> None:
    model = network()
    start = model[0].weight.detach().clone()
    opt = made(model, lr=lr, weight_decay=0.3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    opt.step()
    torch.testing.assert_close(model[0].weight.detach(), start * factor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rates", [(1.0, 2.0), (1.0, 0.0, 1.0), (1.0, float("nan"), 1.0)])
def test_rates_that_are_none(rates: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sum, "rates", lambda self, spec: rates)
    with pytest.raises(PlanError, match="wanted 3 positive numbers; mend its rates"):
        made(network(), lr=0.1)
