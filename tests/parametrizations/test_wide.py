"""Factors wider than the weight: against numpy, one step by hand, and that all of it learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import FoldError, PlanError
from opdf_compile.parametrizations.matrix_spec import WeightForm
from opdf_compile.parametrizations.registry import registered
from opdf_compile.parametrizations.wide import Wide, WideSpec

WIDE = Wide()


def weight(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()


def spec_of(shape: tuple[int, ...], expansion: int = 4, **form: object) -> WideSpec:
    return WideSpec.of(WeightForm(shape, "float64", **form), expansion=expansion)  # type: ignore[arg-type]


@pytest.mark.parametrize("expansion", [2, 3, 4, 16])
@pytest.mark.parametrize(("rows", "cols"), [(12, 7), (7, 12), (9, 9), (1, 9), (9, 1)])
def test_the_start_is_the_balanced_factors_and_a_cosine_basis(
    rows: int, cols: int, expansion: int
) -> None:
    matrix = weight(rows, cols)
    left, right = (t.numpy() for t in WIDE.decompose(matrix, spec_of((rows, cols), expansion)))
    inner, rank = expansion * max(rows, cols), min(rows, cols)
    assert (left.shape, right.shape) == ((rows, inner), (inner, cols))
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(left[:, :rank].T @ left[:, :rank], np.diag(values), atol=1e-12)
    np.testing.assert_allclose(right[:rank] @ right[:rank].T, np.diag(values), atol=1e-12)
    size = inner - rank
    for i, j in np.ndindex(rows, size):
        cosine = math.cos(math.pi * (2 * i + 1) * (2 * j + 1) / (4 * size))
        wanted = math.sqrt(np.mean(values) * 2 / size) * cosine
        assert left[i, rank + j] == pytest.approx(wanted, rel=1e-12, abs=1e-13)
    padding = left[:, rank:]
    np.testing.assert_allclose(
        padding @ padding.T, np.mean(values) * np.eye(rows), atol=1e-12 * np.max(values)
    )
    assert not right[rank:].any()
    assert len(np.unique(padding.round(9), axis=1).T) == size, "no two columns are equal"
    np.testing.assert_allclose(left @ right, matrix.numpy(), rtol=0, atol=1e-13 * np.max(values))


@pytest.mark.parametrize(("rows", "cols"), [(12, 7), (7, 12), (9, 9)])
def test_as_wide_as_the_larger_side(rows: int, cols: int) -> None:
    matrix, spec = weight(rows, cols), spec_of((rows, cols), 1)
    left, right = WIDE.decompose(matrix, spec)
    assert left.shape[1] == max(rows, cols)
    torch.testing.assert_close(left @ right, matrix, rtol=1e-13, atol=1e-13)
    padding = left[:, min(rows, cols) :]
    gram = padding.mT @ padding
    torch.testing.assert_close(gram, torch.eye(len(gram)).double() * gram.diagonal())
    if rows == cols:
        svd = registered("svd").decompose(
            matrix, registered("svd").propose(WeightForm((rows, cols), "float64"), cores=2)
        )
        assert all(
            torch.equal(a, b.reshape(a.shape)) for a, b in zip((left, right), svd, strict=True)
        )


@pytest.mark.parametrize("start", [weight(12, 7), torch.zeros(12, 7).double()], ids=["W", "zero"])
def test_every_padded_direction_learns(start: Tensor) -> None:
    spec = spec_of((12, 7))
    factors = [t.requires_grad_() for t in WIDE.decompose(start, spec)]
    probe = torch.randn(12, 7, generator=torch.Generator().manual_seed(1)).double()
    for step in range(2):
        left, right = torch.autograd.grad((WIDE.compose(factors, spec) * probe).sum(), factors)
        rows = right[7:]
        assert bool((rows.norm(dim=1) > 1e-2 * rows.norm(dim=1).mean()).all())
        assert len(np.unique(rows.numpy().round(9), axis=0)) == len(rows), "none copies another"
        # The other side meets zeros at first, and moves as soon as they have moved.
        assert bool((left[:, 7:] != 0).all()) == (step == 1)
        with torch.no_grad():
            for factor, gradient in zip(factors, (left, right), strict=True):
                factor -= 0.1 * gradient
    assert torch.linalg.matrix_rank(WIDE.compose(factors, spec) - start) == 7


def test_one_step_of_sgd_by_hand() -> None:
    """With balanced factors A A^T = (W W^T)^(1/2) + c^2 I and B^T B = (W^T W)^(1/2)."""
    torch.manual_seed(0)
    model, rate = nn.Linear(7, 12, bias=False).double(), 0.1
    start = model.weight.detach().clone()
    gradient = torch.randn(12, 7, generator=torch.Generator().manual_seed(1)).double()
    plan = opdf.plan(model, parametrization="wide")
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=rate)
    model.weight.grad = gradient.clone()
    opt.step()
    w, g = start.numpy(), gradient.numpy()
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    along = u @ np.diag(s) @ u.T @ g + g @ vt.T @ np.diag(s) @ vt + np.mean(s) * g
    wanted = w - rate * along + rate**2 * g @ w.T @ g
    np.testing.assert_allclose(model.weight.detach().numpy(), wanted, rtol=1e-12, atol=1e-13)
    assert np.abs(wanted - w + rate * g).max() > 1e-3, "not the plain step"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, bias=False),
        nn.Conv2d(6, 8, 3, groups=2, bias=False),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.Conv1d(6, 8, 5, bias=False),
        nn.ConvTranspose2d(6, 8, 3, groups=2, bias=False),
    ],
    ids=str,
)
def test_convolutions_train_and_fold(layer: nn.Module) -> None:
    """The hoisted step's factors against autograd through the sums written out, folded by hand."""
    model = nn.Sequential(layer).double()
    (found,) = model.parameters()
    shape, start = tuple(found.shape), found.detach().clone()
    plan = opdf.plan(model, parametrization="wide")
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.05)
    left, right = (core.detach().clone().requires_grad_() for core in opt.program.cores("0.weight"))
    x = weight(2, model[0].in_channels, *(7,) * (len(shape) - 2))
    for _ in range(3):
        opt.zero_grad()
        model(x).square().mean().backward()
        opt.step()
        written = torch.einsum("mh,hn->mn", left, right).reshape(shape)
        value = torch.func.functional_call(model, {"0.weight": written}, (x,)).square().mean()
        slopes = torch.autograd.grad(value, (left, right))
        with torch.no_grad():
            left -= 0.05 * slopes[0]
            right -= 0.05 * slopes[1]
    wanted = (left.detach().numpy() @ right.detach().numpy()).reshape(shape)
    assert np.abs(wanted - start.numpy()).max() > 1e-4
    folded = opdf.fold(opt)
    assert isinstance(folded, nn.Sequential)
    np.testing.assert_allclose(folded[0].weight.detach().numpy(), wanted, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(folded.eval()(x), model.eval()(x), rtol=1e-12, atol=1e-12)


def test_packed_and_transposed_weights_are_read_by_out_features() -> None:
    plain = WIDE.decompose(weight(12, 7), spec_of((12, 7)))
    stored = WIDE.decompose(weight(12, 7).mT.contiguous(), spec_of((7, 12), transposed=True))
    # Another layout in memory, so that the factorisation rounds differently.
    torch.testing.assert_close(plain, stored, rtol=1e-12, atol=1e-13)


def test_a_plan_has_the_papers_expansion_unless_told_otherwise() -> None:
    student = nn.Sequential(nn.Linear(30, 48), nn.Linear(48, 30))
    plan = opdf.plan(student, parametrization="wide")
    assert plan.request == {"cores": 2}
    assert "48x192 192x30" in str(plan)
    assert WIDE.cost(WIDE.propose(WeightForm((48, 30)))).added == 192 * 78 - 48 * 30
    assert WIDE.cost(WIDE.propose(WeightForm((48, 30)))).forward_flops == 2 * 48 * 192 * 30
    smaller = opdf.plan(student, parametrization="wide", scale=5.2)
    assert [WIDE.describe(entry.spec) for entry in smaller.entries] == [  # type: ignore[arg-type]
        "48x96 96x30",
        "30x96 96x48",
    ]
    with pytest.raises(PlanError, match="wide has 2 factors, found cores=3; leave cores out"):
        opdf.plan(student, parametrization="wide", cores=3)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ([[48, 100], [100, 30]], r"were found, wide has \[\[48, 96\], \[96, 30\]\]"),
        ([[48, 30], [30, 30]], "expansion is 0, wanted a whole number from 1 to 16"),
        ([[48, 96], [96, 96], [96, 30]], "two matrices are wanted"),
    ],
)
def test_only_its_own_shapes_are_inferred(shapes: list[list[int]], sentence: str) -> None:
    with pytest.raises(FoldError, match=sentence):
        WIDE.infer(shapes, WeightForm((48, 30)))
