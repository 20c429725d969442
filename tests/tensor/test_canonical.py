"""The canonical gauge: exact, balanced at every bond, the same from whatever gauge."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from opdf_compile.tensor.canonical_form import canonical, is_canonical
from opdf_compile.tensor.chain import Chain
from opdf_compile.tensor.composition import compose
from opdf_compile.tensor.decomposition import decompose

CHAINS = [
    Chain((6, 1, 4), (4, 1, 6)),
    Chain((6, 4), (4, 5)),
    Chain((4, 3, 4), (4, 2, 4)),
    Chain((4, 3, 1, 3, 4), (4, 2, 1, 2, 4)),
    Chain((1, 4, 3, 4), (4, 1, 2, 4)),
    Chain((2, 1, 1), (1, 1, 1)),
    Chain((1, 1), (1, 1)),
]


def matrix(chain: Chain) -> Tensor:
    return torch.randn(chain.rows, chain.cols, dtype=torch.float64)


def sides(cores: Sequence[Tensor], bond: int) -> tuple[Tensor, Tensor]:
    """The products of the cores left and right of a bond, by einsum."""
    left = torch.ones(1, 1, dtype=torch.float64)
    for core in cores[:bond]:
        left = torch.einsum("pa,aijb->pijb", left, core).flatten(0, 2)
    right = torch.ones(1, 1, dtype=torch.float64)
    for core in reversed(cores[bond:]):
        right = torch.einsum("aijb,bq->aijq", core, right).flatten(1)
    return left, right


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_it_is_lossless_and_balanced_at_every_bond(chain: Chain) -> None:
    given = matrix(chain)
    cores = canonical(given, chain)
    assert tuple(core.shape for core in cores) == chain.core_shapes
    assert (compose(cores) - given).norm() <= 1e-12 * given.norm()
    live = sum(size > 1 for size in chain.products) > 1
    for bond in range(1, chain.cores) if live else ():
        left, right = sides(cores, bond)
        gram = left.mT @ left
        assert (gram - right @ right.mT).norm() <= 1e-10 * gram.norm()
        assert (gram - gram.diagonal().diag()).norm() <= 1e-10 * gram.norm()


def test_of_the_papers_shapes_decompose_is_canonical_and_another_gauge_is_not() -> None:
    chain = CHAINS[0]
    cores = decompose(matrix(chain).float(), chain)
    assert is_canonical(cores, chain)
    turn = torch.randn(chain.bonds[1], chain.bonds[1])
    first = (cores[0] @ turn).contiguous()
    middle = torch.einsum("ab,bijc->aijc", torch.linalg.inv(turn), cores[1])
    assert not is_canonical((first, middle, cores[2]), chain)
    scaled = (cores[0] * 2, cores[1], cores[2] / 2)
    assert not is_canonical(scaled, chain)
    assert not is_canonical(canonical(matrix(CHAINS[2]), CHAINS[2]), CHAINS[2])


@pytest.mark.parametrize("chain", [CHAINS[0], CHAINS[2]], ids=str)
def test_a_matrix_without_full_rank_is_exact_and_can_gain_rank(chain: Chain) -> None:
    given = matrix(chain)
    given[:, 1:] = 0.0
    cores = canonical(given, chain)
    assert all(bool(torch.isfinite(core).all()) for core in cores)
    assert (compose(cores) - given).norm() <= 1e-12 * given.norm()
    for bond in range(1, chain.cores):
        left, right = sides(cores, bond)
        # In no direction of the bond are both sides zero: such a pair would never move.
        assert bool(((left.norm(dim=0) > 0) | (right.norm(dim=1) > 0)).all())
