"""The plain matrix as two factors: against numpy's SVD, and where it is and is not the MPO's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import opdf_compile as opdf
from opdf_compile.errors import FoldError, PlanError
from opdf_compile.parametrizations.matrix_spec import WeightForm
from opdf_compile.parametrizations.registry import registered

SVD, MPO = registered("svd"), registered("mpo")


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("rows", "cols"), [(48, 30), (30, 48), (24, 24)])
def test_the_factors_are_those_of_the_matrix(rows: int, cols: int) -> None:
    matrix = weight(rows, cols)
    spec = SVD.propose(WeightForm((rows, cols)), cores=2)
    left, right = (core.squeeze().numpy() for core in SVD.decompose(matrix, spec))
    inner = min(rows, cols)
    assert (left.shape, right.shape) == ((rows, inner), (inner, cols))
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    # Balanced, and orthogonal up to the singular values.
    np.testing.assert_allclose(left.T @ left, np.diag(values), atol=2e-5)
    np.testing.assert_allclose(right @ right.T, np.diag(values), atol=2e-5)
    np.testing.assert_allclose(left @ right, matrix.numpy(), atol=2e-6)
    assert SVD.cost(spec).added == inner**2
    assert SVD.cost(spec).forward_flops == 2 * rows * inner * cols


def test_an_mpo_of_two_cores_factorises_another_arrangement() -> None:
    matrix = weight(48, 30)
    ours = SVD.decompose(matrix, SVD.propose(WeightForm((48, 30)), cores=2))
    theirs = MPO.decompose(matrix, MPO.propose(WeightForm((48, 30)), cores=2))
    assert [core.shape for core in ours] != [core.shape for core in theirs]


def test_a_transposed_weight_and_a_kernel() -> None:
    matrix = weight(48, 30)
    plain = SVD.decompose(matrix, SVD.propose(WeightForm((48, 30)), cores=2))
    stored = SVD.decompose(matrix.mT, SVD.propose(WeightForm((30, 48), transposed=True), cores=2))
    assert all(torch.equal(a, b) for a, b in zip(plain, stored, strict=True))
    spec = SVD.propose(WeightForm((16, 6, 3, 3), kernel=9), cores=2)
    assert SVD.shapes(spec) == ((1, 16, 1, 16), (16, 1, 54, 1))
    assert SVD.describe(spec) == "16x16 16x54"


def test_a_plan_takes_two_factors_unless_told_otherwise() -> None:
    student = torch.nn.Sequential(torch.nn.Linear(30, 48), torch.nn.Linear(48, 1))
    plan = opdf.plan(student, parametrization="svd", min_size=1)
    assert plan.request == {"cores": 2}
    assert [entry.key for entry in plan.entries] == ["0.weight"]
    assert plan.refusals[-1].reason == "has sizes that allow no bond: cores would add nothing"
    assert "48x30 30x30" in str(plan)
    with pytest.raises(PlanError, match="svd has 2 factors, found cores=3; leave cores out"):
        opdf.plan(student, parametrization="svd", cores=3)
    with pytest.raises(
        PlanError, match=r"scale 3 is asked for, .* leaves no choice: it has scale 1\.62"
    ):
        opdf.plan(student, parametrization="svd", scale=3)


def test_only_its_own_shapes_are_inferred() -> None:
    other = MPO.shapes(MPO.propose(WeightForm((48, 30)), cores=2))
    with pytest.raises(FoldError, match=r"svd has \[\[1, 48, 1, 30\], \[30, 1, 30, 1\]\]"):
        SVD.infer(other, WeightForm((48, 30)))
