"""R + F_1 .. F_L: against numpy's SVD, one step by hand, and what is left to learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import opdf_compile as opdf
from opdf_compile.parametrizations.spectral import Spectral, SpectralSpec

SPECTRAL = Spectral()


def weight(rows: int = 24, cols: int = 18) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("rank", [1, 4, 18])
def test_the_chain_is_the_leading_part_of_the_svd(depth: int, rank: int) -> None:
    spec = SpectralSpec((24, 18), "float64", rank=rank, depth=depth)
    residual, *chain = (t.numpy() for t in SPECTRAL.decompose(weight(), spec))
    u, s, vt = np.linalg.svd(weight().numpy(), full_matrices=False)
    leading = (u[:, :rank] * s[:rank]) @ vt[:rank]
    product = np.linalg.multi_dot(chain)
    np.testing.assert_allclose(product, leading, atol=1e-12)
    np.testing.assert_allclose(residual, weight().numpy() - leading, atol=1e-12)
    # Balanced: every factor has the same singular values.
    for factor in chain:
        values = np.linalg.svd(factor, compute_uv=False)
        np.testing.assert_allclose(values, s[:rank] ** (1 / depth), rtol=1e-10)


def test_one_step_of_sgd_by_hand() -> None:
    model = torch.nn.Linear(18, 24, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weight())
    plan = opdf.plan(model, parametrization="spectral")
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.01)
    r, u, m, v = (t.detach().clone() for t in opt.program.cores("weight"))
    g = torch.cos(torch.arange(24.0 * 18).double()).reshape(24, 18)
    model.weight.grad = g.clone()
    opt.step()

    def stepped(outer: float) -> torch.Tensor:
        left, right = u - outer * g @ (m @ v).mT, v - outer * (u @ m).mT @ g
        return r - 0.01 * g + left @ (m - 0.01 * u.mT @ g @ v.mT) @ right

    torch.testing.assert_close(model.weight.detach(), stepped(0.05), rtol=1e-12, atol=1e-12)
    assert (model.weight - stepped(0.01)).abs().max() > 1e-2, "the control: one rate for all"


def test_every_direction_can_be_learned() -> None:
    """A chain of rank r alone could not leave rank r."""
    model = torch.nn.Linear(16, 16, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    opt = opdf.Overparam(
        model, torch.optim.Adam, plan=opdf.plan(model, parametrization="spectral"), lr=0.02
    )
    target = torch.eye(16).double()
    for _ in range(200):
        opt.zero_grad()
        (model.weight - target).square().sum().backward()
        opt.step()
    assert (model.weight - target).abs().max() < 0.05
    assert torch.linalg.matrix_rank(model.weight.detach(), tol=0.5) == 16


def test_the_middle_factors_are_cheaper_than_the_mpos() -> None:
    student = torch.nn.Linear(768, 768)
    ours = opdf.plan(student, parametrization="spectral", cores=6)
    theirs = opdf.plan(student, cores=5)
    assert ours.cost.step_flops < theirs.cost.step_flops / 5
    assert ours.cost.parameters < theirs.cost.parameters
