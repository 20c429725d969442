"""Tasks that try the crew itself."""

from __future__ import annotations

import torch
import torch.distributed as dist


def sum_of_ranks() -> float:
    total = torch.tensor(float(dist.get_rank()))
    dist.all_reduce(total)
    return float(total)


def one_waits() -> None:
    """A collective that the other ranks never join."""
    if dist.get_rank() == 0:
        dist.all_reduce(torch.zeros(1))


def one_raises() -> None:
    if dist.get_rank() == 1:
        raise ValueError("this rank only")
    dist.all_reduce(torch.zeros(1))
