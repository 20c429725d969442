"""The small student that every optimizer is tried on, its batches and its loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 8


class Student(nn.Module):
    """A convolution and three linear layers; one weight, and one core of it, has 4,096 entries.

    From that size on the 8-bit optimizers keep their state in 8 bits.

    Args:
        bias: Whether the layers have biases.
    """

    def __init__(self, *, bias: bool) -> None:
        """Build it; the seed decides the weights."""
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=bias)
        self.wide = nn.Linear(32, 128, bias=bias)
        self.back = nn.Linear(128, 64, bias=bias)
        self.head = nn.Linear(64, 4, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of 8 x 8 images of three channels."""
        seen = F.adaptive_avg_pool2d(torch.tanh(self.conv(images)), 2).flatten(1)
        hidden = torch.tanh(self.back(torch.tanh(self.wide(seen))))
        logits: Tensor = self.head(hidden)
        return logits


def make_student(*, bias: bool) -> Student:
    """The same student each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Student(bias=bias)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The images and labels of one step."""
    generator = torch.Generator().manual_seed(1000 + step)
    images = torch.randn(ROWS, 3, 8, 8, generator=generator)
    return images, torch.randint(4, (ROWS,), generator=generator)
