"""Students with sites, their numbers drawn so that a fold that is wrong shows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@torch.no_grad()
def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    """A model whose norms have numbers unlike those that torch starts from."""
    drawn = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight.uniform_(0.5, 1.5, generator=drawn)
            module.bias.normal_(0.0, 0.3, generator=drawn)
            module.running_mean.normal_(0.0, 0.3, generator=drawn)
            module.running_var.uniform_(0.5, 1.5, generator=drawn)
    return model


class Stack(nn.Module):
    """Conv-BN-ReLU blocks without shortcuts, and a head."""

    def __init__(self, axes: int = 2, channels: int = 6, depth: int = 2, groups: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place in range(depth):
            reads = 3 if place == 0 else channels
            layers += [
                CONVS[axes](reads, channels, 3, padding=1, groups=groups if place else 1),
                NORMS[axes](channels),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(2).mean(2))


def batch(
    axes: int = 2, size: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Inputs of a Stack."""
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, *[size] * axes, generator=drawn, dtype=torch.float64).to(dtype)


def steps(model: nn.Module, inputs: list[Tensor], lr: float = 0.05) -> None:
    """Plain SGD with momentum on the mean square of the outputs."""
    inner = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.train()
    for x in inputs:
        inner.zero_grad()
        model(x).square().mean().backward()
        inner.step()
