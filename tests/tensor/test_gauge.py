"""Procrustes on bonds: the matrix stays, the distance falls, to the minimum where that is known."""

from __future__ import annotations

import pytest
import torch
from quick import covering
from torch import Tensor

from opdf_compile.tensor.canonical_form import canonical
from opdf_compile.tensor.chain import Chain
from opdf_compile.tensor.composition import compose
from opdf_compile.tensor.gauge import aligned, distance

PAPER = Chain((6, 1, 4), (4, 1, 6))
LONG = Chain((6, 1, 1, 1, 4), (4, 1, 1, 1, 6))
OUTER = Chain((4, 3, 4), (4, 2, 4))
INNER = Chain((4, 3, 2, 3, 4), (4, 1, 3, 2, 4))
TWO = Chain((6, 4), (4, 5))
CHAINS = [PAPER, LONG, OUTER, INNER, TWO]


def cores_of(chain: Chain, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(chain.rows, chain.cols, dtype=torch.float64, generator=generator)
    return canonical(made, chain)


def targets_of(chain: Chain, seed: int = 1) -> dict[int, Tensor]:
    return {k: c for k, c in enumerate(cores_of(chain, seed)) if k != chain.central}


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_the_matrix_stays_and_the_distance_falls(chain: Chain) -> None:
    cores, targets = cores_of(chain, 0), targets_of(chain)
    moved = aligned(cores, targets)
    before = compose(cores)
    assert (compose(moved) - before).norm() <= 1e-12 * before.norm()
    assert distance(moved, targets) < 0.5 * distance(cores, targets)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_no_small_turn_of_any_bond_brings_them_nearer(chain: Chain) -> None:
    targets = targets_of(chain)
    moved = aligned(cores_of(chain, 0), targets)
    least = distance(moved, targets)
    for bond in range(1, chain.cores):
        for _ in range(3):
            skew = 1e-3 * torch.randn(chain.bonds[bond], chain.bonds[bond], dtype=torch.float64)
            turn = torch.linalg.matrix_exp(skew - skew.mT)
            other = list(moved)
            other[bond - 1] = moved[bond - 1] @ turn
            other[bond] = torch.einsum("ba,bijc->aijc", turn, moved[bond])
            # Inner cores that are no identities: each bond is the best for one core only.
            assert distance(other, targets) >= least * (1 - (1e-4 if chain is INNER else 1e-9))


@pytest.mark.parametrize("chain", [PAPER, LONG, OUTER], ids=str)
def test_of_an_outer_core_the_distance_is_that_of_bures(chain: Chain) -> None:
    """min over Q of ||A Q - B||^2 = ||A||^2 + ||B||^2 - 2 ||A^T B||_nuclear."""
    targets = targets_of(chain)
    moved = aligned(cores_of(chain, 0), targets)
    for place, axis in ((0, 2), (chain.cores - 1, 0)):
        one, other = (
            core.flatten(0, 2) if axis else core.flatten(1).mT
            for core in (moved[place], targets[place])
        )
        inner = torch.linalg.svdvals(one.mT @ other).sum()
        wanted = one.square().sum() + other.square().sum() - 2 * inner
        found = (one - other).square().sum()
        assert float(found) == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize(
    ("chain", "size"),
    covering([PAPER, OUTER, TWO, Chain((8, 2), (8, 3))], [1e-8, 1e-4, 1.0, 10.0]),
)
def test_outer_cores_differ_by_no_more_than_the_matrices(chain: Chain, size: float) -> None:
    """||A Q - B||^2 <= 2 sqrt(D) ||W - V||_F: Powers and Stoermer 1970, Araki and Yamagami 1981."""
    one = torch.randn(chain.rows, chain.cols, dtype=torch.float64)
    other = one + size * torch.randn_like(one)
    targets = dict(enumerate(canonical(other, chain)))
    del targets[chain.central]
    moved = aligned(canonical(one, chain), targets)
    for place, bond in ((0, chain.bonds[1]), (chain.cores - 1, chain.bonds[-2])):
        if place in targets:
            apart = (moved[place] - targets[place]).square().sum()
            assert apart <= 2 * bond**0.5 * (one - other).norm() + 1e-24


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_equal_matrices_have_distance_zero_and_only_some_cores_may_be_compared(
    chain: Chain,
) -> None:
    same = targets_of(chain, 0)
    size = float(same[0].square().mean())
    assert distance(aligned(cores_of(chain, 0), same), same) <= 1e-24 * size
    some = {0: targets_of(chain)[0]}
    moved = aligned(cores_of(chain, 0), some)
    assert (
        distance(moved, some)
        <= distance(aligned(cores_of(chain, 0), targets_of(chain)), some) + 1e-12
    )
