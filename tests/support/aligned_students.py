"""Students and teachers that are small enough to look at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import opdf_compile as opdf

MAP = [("0.weight", "0.weight"), ("2.weight", "2.weight")]


def network(width: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, width), nn.Tanh(), nn.Linear(width, 12)).to(dtype)


def batch(seed: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(8, 12, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def aligned_optimizer(
    student: nn.Module,
    alignment: opdf.CoreAlignment | None,
    kind: type[torch.optim.Optimizer] = torch.optim.AdamW,
    **options: object,
) -> opdf.Overparam:
    given = {"lr": 1e-2, "cores": 3, **options}
    return opdf.Overparam(student, kind, alignment=alignment, **given)


def train(student: nn.Module, optimizer: opdf.Overparam, steps: int, first: int = 0) -> None:
    dtype = next(student.parameters()).dtype
    for step in range(first, first + steps):
        optimizer.zero_grad()
        student(batch(step, dtype)).square().mean().backward()
        optimizer.step()


def weights(student: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in student.parameters()]
