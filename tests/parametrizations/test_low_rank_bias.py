"""Matrix completion: what chains that start small find by themselves, and what takes it away.

A matrix of rank 5 is to be found from a part of its entries (arXiv 2311.05061, section 5): gradient
descent on those alone, from chains of three factors of size 0.1. Only a bias towards low rank tells
the entries that nobody sees.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf

SIZE, RANK, START, RATE = 100, 5, 0.1, 0.4
WIDE = "spectral(residual=none, cores=3, outer_rate=1)"
THIN = "spectral(residual=none, cores=3, rank=10, outer_rate=5)"

Task = tuple[Tensor, Tensor]


def task(share: float, seed: int) -> Task:
    """The matrix, of norm 1, and which of its entries are seen."""
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(SIZE, RANK, generator=generator).double() for _ in range(2)]
    matrix = factors[0] @ factors[1].mT
    seen = torch.rand(SIZE, SIZE, generator=generator) < share
    return matrix / torch.linalg.matrix_norm(matrix, 2), seen.double()


def small(matrix: Tensor, rank: int = SIZE) -> Tensor:
    """What three factors of the size of the start make: leading singular vectors, equal values."""
    left, _values, right = torch.linalg.svd(matrix)
    return START**3 * left[:, :rank] @ right[:rank]


def errors(
    name: str, of: Task, start: Tensor, steps: int, *, rate: float = RATE, seeded: bool = False
) -> list[float]:
    """After each step |W - M| / |M|, over all entries."""
    matrix, seen = of
    model = nn.Linear(SIZE, SIZE, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(start)
    plan = opdf.plan(model, parametrization=name)
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=rate)
    found = []
    for step in range(steps):
        model.weight.grad = seen * (model.weight.detach() - matrix)
        if seeded and step == 0:
            opt.seed()
        opt.step()
        found.append(float((model.weight.detach() - matrix).norm() / matrix.norm()))
    return found


LONG = [(share, seed, 400) for share in (0.2, 0.3) for seed in range(4)]


@pytest.mark.parametrize(
    ("share", "seed", "steps"),
    [(0.3, 0, 150), *(pytest.param(*long, marks=pytest.mark.slow) for long in LONG)],
)
def test_a_thin_chain_is_never_behind_the_wide_one(share: float, seed: int, steps: int) -> None:
    """The paper's claim: twice the rank, outer factors five times as fast."""
    of, generator = task(share, seed), torch.Generator().manual_seed(100 + seed)
    wide = errors(WIDE, of, small(torch.randn(SIZE, SIZE, generator=generator).double()), steps)
    start = small(of[0] * of[1], 2 * RANK)
    thin = errors(THIN, of, start, steps)
    assert all(a <= b for a, b in zip(thin, wide, strict=True))
    first = next(step for step, error in enumerate(thin) if error <= wide[-1])
    assert first < steps / 2, "less than half the steps to the same error"
    assert wide[-1] < 0.35 and thin[-1] < 0.15
    same = errors(THIN.replace("rate=5", "rate=1"), of, start, first + 1)
    assert same[-1] > 1.5 * thin[first], "the control: it is the outer rate that makes it fast"


def test_a_residual_that_is_trained_takes_the_bias_away() -> None:
    of = task(0.3, 0)
    start = small(of[0] * of[1], 2 * RANK)
    ends = {
        residual: errors(f"spectral(residual={residual}, rank=10)", of, start, 250)[-1]
        for residual in ("frozen", "trained")
    }
    assert ends["frozen"] < 0.05
    # It fits what is seen, and leaves the rest: about the share of entries that is not seen.
    assert ends["trained"] > 0.8


@pytest.mark.slow
def test_a_change_that_is_seeded_finds_the_directions_first() -> None:
    of, nothing = task(0.3, 0), torch.zeros(SIZE, SIZE).double()
    ends = {
        seeded: errors("delta(base=frozen, rank=10)", of, nothing, 1000, rate=0.1, seeded=seeded)
        for seeded in (True, False)
    }
    # docs/method.md prints both.
    assert round(float(ends[True][-1]), 2) == 0.07
    assert round(float(ends[False][-1]), 2) == 0.87
