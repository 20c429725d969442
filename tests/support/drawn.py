"""Numbers and layers that tests of parametrizations draw, the same each time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, rounded to float32 and held as float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def model_of(make: Callable[[], nn.Module]) -> nn.Sequential:
    """A model of one layer, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(make()).double()
