"""MuonAdamW against both of its halves, written out, and against torch's own."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.distill.recipe.checks_optimizer import optimizer_class, optimizer_names
from opdf_compile.distill.recipe.muon_adamw import MuonAdamW, orthogonalised
from opdf_compile.distill.recipe.schema import OptimizerSection


def gradients(shape: tuple[int, ...], count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def stepped(make: Any, shape: tuple[int, ...], **options: Any) -> Tensor:
    """A parameter of ones after four steps."""
    parameter = nn.Parameter(torch.ones(shape, dtype=torch.float64))
    optimizer = make([parameter], lr=0.01, **options)
    for gradient in gradients(shape):
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(7,), (1, 7), (7, 1), (1, 3, 3), ()])
def test_vectors_are_adamws(shape: tuple[int, ...]) -> None:
    wanted = stepped(torch.optim.AdamW, shape, weight_decay=0.1)
    assert torch.allclose(stepped(MuonAdamW, shape, weight_decay=0.1), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
def test_singular_values_go_through_the_polynomial_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = gradients(shape, 1)[0]
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    s = values / values.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    wanted = left @ s.diag() @ right
    assert torch.allclose(orthogonalised(matrix), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("nesterov", [True, False])
def test_matrices_step_as_the_formula_says(nesterov: bool) -> None:
    weight, mean = torch.ones(4, 6, dtype=torch.float64), torch.zeros(4, 6, dtype=torch.float64)
    for gradient in gradients((4, 6)):
        mean = 0.95 * mean + 0.05 * gradient
        ahead = 0.05 * gradient + 0.95 * mean if nesterov else mean
        step = 0.01 * 0.2 * math.sqrt(6) * orthogonalised(ahead)
        weight = (1 - 0.01 * 0.1) * weight - step
    found = stepped(MuonAdamW, (4, 6), weight_decay=0.1, nesterov=nesterov)
    assert torch.allclose(found, weight, rtol=0, atol=1e-12)


def test_matrices_are_torchs_muon_up_to_its_bfloat16() -> None:
    """Four steps of 0.01 x 0.2 sqrt(6): an error of 2 % in each is 1e-4 of the frobenius norm."""
    options = {"weight_decay": 0.1, "momentum": 0.95}
    theirs = stepped(torch.optim.Muon, (4, 6), adjust_lr_fn="match_rms_adamw", **options)
    ours = stepped(MuonAdamW, (4, 6), **options)
    moved = (theirs - 1).norm()
    assert (ours - theirs).norm() < 0.02 * moved
    assert (stepped(MuonAdamW, (4, 6), matrices=False) - theirs).norm() > 0.1 * moved


def test_a_kernel_is_the_matrix_of_its_filters() -> None:
    wanted = stepped(MuonAdamW, (4, 6))
    kernel = nn.Parameter(torch.ones(4, 2, 3, dtype=torch.float64))
    optimizer = MuonAdamW([kernel], lr=0.01)
    for gradient in gradients((4, 6)):
        kernel.grad = gradient.view(4, 2, 3)
        optimizer.step()
    assert torch.allclose(kernel.view(4, 6), wanted, rtol=0, atol=1e-12)


def test_what_has_no_gradient_stays_and_a_zero_gradient_moves_nothing() -> None:
    moved, left = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    moved.grad = torch.zeros(2, 2)
    MuonAdamW([moved, left], lr=0.1).step()
    assert torch.equal(moved, left)


def test_a_state_that_is_saved_goes_on_with_the_same_bits() -> None:
    first, second = (nn.Linear(4, 4) for _ in range(2))
    second.load_state_dict(first.state_dict())
    opts = [MuonAdamW(model.parameters(), lr=0.01) for model in (first, second)]
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def step(model: nn.Module, opt: torch.optim.Optimizer) -> None:
        opt.zero_grad()
        model(x).square().sum().backward()
        opt.step()

    step(first, opts[0])
    second.load_state_dict(first.state_dict())
    opts[1].load_state_dict(copy.deepcopy(opts[0].state_dict()))
    for model, opt in zip((first, second), opts, strict=True):
        step(model, opt)
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"momentum": 1.0}])
def test_options_without_meaning_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        MuonAdamW([nn.Parameter(torch.ones(1))], **bad)


def test_gains_over_it_leave_the_gains_to_adamw() -> None:
    """As matrices of one column and one row they are vectors; the direction alone is no step."""
    student = nn.Linear(8, 8)
    plan = opdf.plan(student, parametrization="gains")
    opt = opdf.Overparam(student, MuonAdamW, plan=plan, lr=0.01)
    student(torch.ones(2, 8)).square().sum().backward()
    opt.step()
    kept = [set(opt.inner.state[p]) for group in opt.inner.param_groups for p in group["params"]]
    assert sorted(map(sorted, kept)) == [["first", "second", "step"]] * 3 + [["momentum"]]


def test_a_recipe_names_it() -> None:
    assert "MuonAdamW" in optimizer_names()
    section = OptimizerSection(name="MuonAdamW", lr=0.01)
    assert optimizer_class(section) is MuonAdamW
