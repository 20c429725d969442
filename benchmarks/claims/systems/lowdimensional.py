"""Low-dimensional learning dynamics, arXiv 2311.05061: completion of a matrix of low rank.

The setting is that of the paper's public notebook: a 100 x 100 matrix of five of the singular
triplets of a random one (numbers 0, 10, .. 40), 30 % of whose entries are seen; three factors,
orthogonal and of size 0.01; gradient descent at rate 10 on half the mean square over what is seen.
The compressed chain has twice the rank, starts along the leading singular vectors of the seen
entries over their share, and its outer factors move at five times the rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from quality.statistics import compare
from torch import Tensor, nn

import opdf_compile as opdf
from claims.claim import Claim, Finding, System, paired

SIZE, RANK, DEPTH, START, RATE, OUTER, SEEN = 100, 5, 3, 1e-2, 10.0, 5.0, 0.3
WIDE = f"spectral(residual=none, cores={DEPTH}, outer_rate=1)"
THIN = f"spectral(residual=none, cores={DEPTH}, rank={2 * RANK}, outer_rate={OUTER:g})"
STEPS = {True: 3000, False: 10_000}
SEEDS = {True: 3, False: 8}

_TASK = {
    "system": "low-dimensional",
    "source": "arXiv 2311.05061",
    "task": f"{SIZE} x {SIZE} matrix of rank {RANK}, {SEEN:.0%} of its entries seen",
    "method": f"three factors of rank {2 * RANK}, the outer ones {OUTER:g} times as fast",
    "baseline": "three factors of full size, the rate of the paper for both",
}
NEVER_BEHIND = Claim(
    **_TASK,
    says="The compressed chain's error is at or below the wide one's at every iteration.",
    equal="steps",
    unit="of the matrix's norm: the least lead over all iterations",
    # Both begin at an error of 1, up to a start of size 1e-6.
    above=-1e-4,
)
FASTER = Claim(
    **_TASK,
    says="It is more than twice as fast.",
    equal="error",
    unit="times: the wide chain's time over its own, to the error that the wide one ends with",
    above=2.0,
)


class Run(NamedTuple):
    """One chain's descent.

    Attributes:
        errors: |W - M| / |M| after each step.
        seconds: Of a step, the median.
    """

    errors: list[float]
    seconds: float


def task(seed: int) -> tuple[Tensor, Tensor]:
    """The matrix, and 1 where it is seen."""
    generator = torch.Generator().manual_seed(seed)
    left, values, right = torch.linalg.svd(
        torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    )
    chosen = torch.arange(0, SIZE // 2, SIZE // (2 * RANK))
    matrix = left[:, chosen] @ (values[chosen, None] * right[chosen])
    seen = torch.zeros(SIZE * SIZE, dtype=torch.float64)
    seen[torch.randperm(SIZE * SIZE, generator=generator)[: int(SEEN * SIZE * SIZE)]] = 1
    return matrix, seen.view(SIZE, SIZE)


def starts(matrix: Tensor, seen: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """What the wide and the compressed chain multiply out to before the first step."""
    generator = torch.Generator().manual_seed(1000 + seed)
    orthogonal = torch.empty(SIZE, SIZE, dtype=torch.float64)
    nn.init.orthogonal_(orthogonal, generator=generator)
    left, _values, right = torch.linalg.svd(matrix * seen / SEEN)
    thin = left[:, : 2 * RANK] @ right[: 2 * RANK]
    return START**DEPTH * orthogonal, START**DEPTH * thin


def descent(name: str, start: Tensor, matrix: Tensor, seen: Tensor, steps: int) -> Run:
    """Gradient descent on what is seen."""
    model = nn.Linear(SIZE, SIZE, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(start)
    plan = opdf.plan(model, parametrization=name)
    optimizer = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=RATE)
    whole, count = float(matrix.norm()), float(seen.sum())
    errors, seconds = [], []
    for _ in range(steps):
        difference = model.weight.detach() - matrix
        began = time.perf_counter()
        model.weight.grad = seen * difference / count
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        errors.append(float((model.weight.detach() - matrix).norm()) / whole)
    return Run(errors, float(torch.tensor(seconds).median()))


def lead(wide: Run, thin: Run) -> float:
    """The least by which the compressed chain is ahead, over all iterations."""
    return min(a - b for a, b in zip(wide.errors, thin.errors, strict=True))


def speed_up(wide: Run, thin: Run) -> float:
    """The wide chain's time over the compressed one's, to the error that the wide one ends with."""
    goal = wide.errors[-1]
    first, mine = (
        next(step for step, error in enumerate(run.errors, 1) if error <= goal)
        for run in (wide, thin)
    )
    return first * wide.seconds / (mine * thin.seconds)


def measure(small: bool, told: Callable[[str, float], None]) -> Sequence[Finding]:
    """Both claims, each over seeds of the matrix, the seen entries and the start."""
    leads, speeds, ends = [], [], []
    for seed in range(SEEDS[small]):
        told(f"matrix {seed + 1}", seed / SEEDS[small])
        matrix, seen = task(seed)
        runs = [
            descent(name, start, matrix, seen, STEPS[small])
            for name, start in zip((WIDE, THIN), starts(matrix, seen, seed), strict=True)
        ]
        leads.append(lead(*runs))
        speeds.append(speed_up(*runs))
        ends.append([run.errors[-1] for run in runs])
    wide, thin = torch.tensor(ends).mean(0).tolist()
    remark = f"After {STEPS[small]:,} steps the errors are {wide:.2g} (wide) and {thin:.2g}."
    nothing = [0.0] * len(leads)
    faster = compare(speeds, nothing)
    return (
        paired(NEVER_BEHIND, leads, nothing, remark),
        Finding(FASTER, faster.difference, faster.ci_low, faster.ci_high, faster.seeds),
    )


SYSTEM = System("lowdimensional", measure)
