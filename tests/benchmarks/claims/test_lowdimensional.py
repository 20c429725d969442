"""The experiment of low-dimensional dynamics: its descent, its start, its two figures."""

from __future__ import annotations

import pytest
import torch
from claims.systems.lowdimensional import (
    OUTER,
    RANK,
    RATE,
    SIZE,
    START,
    THIN,
    WIDE,
    Run,
    descent,
    lead,
    speed_up,
    starts,
    task,
)


def test_the_matrix_and_what_is_seen() -> None:
    """Rank 5, 30 % of 10,000 entries."""
    matrix, seen = task(0)
    assert int(torch.linalg.matrix_rank(matrix)) == RANK
    assert float(seen.sum()) == 3000
    assert not torch.equal(task(1)[0], matrix)


def test_both_start_as_small() -> None:
    """All singular values are the start's third power, of the thin chain twice the rank of them."""
    for found, rank in zip(starts(*task(0), 0), (SIZE, 2 * RANK), strict=True):
        values = torch.linalg.svdvals(found) / START**3
        torch.testing.assert_close(values[:rank], torch.ones(rank).double())
        assert float(values[rank:].sum()) < 1e-8


@pytest.mark.parametrize(("name", "outer"), [(WIDE, 1.0), (THIN, OUTER)])
def test_the_descent_is_that_of_three_factors(name: str, outer: float) -> None:
    """The oracle: balanced factors and autograd, ten steps of plain gradient descent."""
    matrix, seen = task(0)
    wide, thin = starts(matrix, seen, 0)
    start, rank = (wide, SIZE) if name == WIDE else (thin, 2 * RANK)
    left, _values, right = torch.linalg.svd(start)
    factors = [START * left[:, :rank], START * torch.eye(rank).double(), START * right[:rank]]
    errors = []
    for _ in range(10):
        factors = [factor.detach().requires_grad_() for factor in factors]
        product = factors[0] @ factors[1] @ factors[2]
        loss = (seen * (product - matrix)).square().sum() / seen.sum() / 2
        grads = torch.autograd.grad(loss, factors)
        rates = (RATE * outer, RATE, RATE * outer)
        factors = [f - r * g for f, g, r in zip(factors, grads, rates, strict=True)]
        moved = factors[0] @ factors[1] @ factors[2]
        errors.append(float((moved.detach() - matrix).norm() / matrix.norm()))

    found = descent(name, start, matrix, seen, 10)

    assert found.errors == pytest.approx(errors, rel=1e-9)
    assert errors[0] != errors[-1]


def test_the_lead_is_the_least_one() -> None:
    assert lead(Run([1.0, 0.8, 0.5], 1.0), Run([1.0, 0.9, 0.1], 1.0)) == pytest.approx(-0.1)


def test_the_speed_up_is_of_time_to_the_same_error() -> None:
    """Three steps of 2 s against two steps of 0.5 s."""
    wide, thin = Run([1.0, 0.8, 0.5], 2.0), Run([0.9, 0.4, 0.1], 0.5)
    assert speed_up(wide, thin) == pytest.approx(6.0)
