"""w = t |t|^(a-1): every entry by itself, zeros and extremes included, and one step by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import opdf_compile as opdf
from opdf_compile.parametrizations.powerprop import Powerprop, PowerSpec

POWER = Powerprop()
EXPONENTS = [1.01, 1.5, 2, 2.5, 3, 4, 8]
LARGEST, SMALLEST = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny


def extremes() -> torch.Tensor:
    plain = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    scaled = [plain, plain * 1e30, plain * 1e-30, plain * 1e-36]
    edges = torch.tensor([0.0, -0.0, LARGEST, -LARGEST, SMALLEST, -SMALLEST, 1.0, -1.0]).repeat(5)
    return torch.cat([*scaled, edges[None]])


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_every_entry_comes_back(exponent: float) -> None:
    weight = extremes()
    spec = PowerSpec(tuple(weight.shape), exponent=exponent)
    (root,) = POWER.decompose(weight, spec)
    composed = POWER.compose((root,), spec)
    assert torch.isfinite(composed).all()
    # Entry by entry: none is mixed with others, so that small ones are as exact as large ones.
    error = (composed.double() - weight.double()).abs()
    assert bool((error <= 1e-6 * weight.double().abs()).all())
    assert torch.equal(composed == 0, weight == 0)
    wrong = POWER.compose((root * 1.01,), spec)[:4]
    assert bool(((wrong - weight[:4]).abs() > 1e-3 * weight[:4].abs()).all()), "the control"


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_the_gradient_is_the_power_rules_and_zero_at_zero(exponent: float) -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).double()
    weight[0] = 0.0
    spec = PowerSpec((6, 8), "float64", exponent=exponent)
    root = POWER.decompose(weight, spec)[0].requires_grad_()
    POWER.compose((root,), spec).sum().backward()
    wanted = exponent * root.detach().abs().numpy() ** (exponent - 1)
    assert root.grad is not None
    np.testing.assert_allclose(root.grad.numpy(), wanted, rtol=1e-12, atol=1e-300)
    assert bool((root.grad[0] == 0).all())


def test_one_step_of_sgd_by_hand_and_pruned_weights_stay() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8, bias=False).double()
    with torch.no_grad():
        model.weight[:, :4] = 0.0
    start = model.weight.detach().clone().numpy()
    plan = opdf.plan(model, parametrization="powerprop")
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.1)
    model.weight.grad = torch.ones(8, 8).double()
    opt.step()
    root = np.sign(start) * np.sqrt(np.abs(start))
    moved = root - 0.1 * 2 * np.abs(root)
    np.testing.assert_allclose(
        model.weight.detach().numpy(), moved * np.abs(moved), rtol=1e-12, atol=1e-15
    )
    assert bool((model.weight[:, :4] == 0).all())
    assert bool((model.weight[:, 4:] != torch.from_numpy(start)[:, 4:]).all())


def test_half_weights_up_to_the_largest() -> None:
    for dtype in ("float16", "bfloat16"):
        kind = getattr(torch, dtype)
        top = torch.finfo(kind).max
        weight = torch.tensor([[top, -top, torch.finfo(kind).smallest_normal, 0.0]], dtype=kind)
        spec = PowerSpec((1, 4), dtype)
        assert torch.equal(POWER.compose(POWER.decompose(weight, spec), spec), weight)
