"""Blocks A_b C B_b: one block at a time against the MPO, and what sharing C means."""

from __future__ import annotations

import numpy as np
import torch

import opdf_compile as opdf
from opdf_compile.parametrizations.matrix_spec import WeightForm
from opdf_compile.parametrizations.mpo import Mpo
from opdf_compile.parametrizations.shared import Shared

SHARED = Shared()


def stack() -> torch.Tensor:
    return torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(0)).double()


def test_every_block_is_an_mpo_with_the_same_central_core() -> None:
    spec = SHARED.propose(WeightForm((3, 12, 20), dtype="float64", row_axes=2))
    assert spec.blocks == 3, "one block for each matrix of the stack"
    left, central, right = SHARED.decompose(stack(), spec)
    assert torch.equal(central, torch.eye(spec.bond).double())
    mpo = Mpo()
    for block in range(3):
        alone = mpo.propose(WeightForm((12, 20), dtype="float64"), cores=3)
        cores = mpo.decompose(stack()[block], alone)
        assert torch.equal(cores[0][0], left[block])
        assert torch.equal(cores[2][..., 0], right[block])
    # Away from the start, against numpy.
    central = central + 0.1 * torch.randn(central.shape, generator=torch.Generator()).double()
    found = SHARED.compose((left, central, right), spec).numpy()
    wanted = np.einsum("eacl,lm,embd->eabcd", left.numpy(), central.numpy(), right.numpy())
    np.testing.assert_allclose(found, wanted.reshape(3, 12, 20), atol=1e-12)


def test_blocks_learn_from_each_other() -> None:
    """A gradient of one block moves the others too, through C; in an MPO per block it would not."""
    model = torch.nn.Linear(16, 32, bias=False).double()
    plan = opdf.plan(model, parametrization="shared")
    (entry,) = plan.entries
    assert entry.spec.blocks == 4  # type: ignore[attr-defined]
    before = model.weight.detach().clone()
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.1)
    model.weight.grad = torch.zeros_like(model.weight)
    model.weight.grad[:8] = 1.0
    opt.step()
    change = (model.weight.detach() - before).reshape(4, 8, 16).flatten(1).norm(dim=1)
    assert bool((change > 1e-3).all())


def test_packed_projections_are_cut_by_out_features_also_where_stored_transposed() -> None:
    weight = torch.randn(30, 48, generator=torch.Generator().manual_seed(0))
    stored = SHARED.decompose(weight, SHARED.propose(WeightForm((30, 48), transposed=True)))
    plain = SHARED.decompose(weight.mT.contiguous(), SHARED.propose(WeightForm((48, 30))))
    assert all(map(torch.equal, stored, plain))


def test_rows_that_cannot_be_cut_are_one_block() -> None:
    assert SHARED.propose(WeightForm((23, 37))).blocks == 1
    assert SHARED.propose(WeightForm((10, 37))).blocks == 2
    assert SHARED.describe(SHARED.propose(WeightForm((48, 30)))) == "4 x [4,3]x[6,5]"
