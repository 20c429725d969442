"""Students: stacks of convolution, BatchNorm and ReLU, over one axis or two.

    shallow     3 convolutions, the second and third of stride 2
    deep        9 convolutions, the fourth and seventh of stride 2, no shortcuts
    deep-skip   the same with x + relu(norm(conv(x))) where the shape allows

The width doubles at the first stride. Then the mean over the axes, and a linear head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 8
TEACHER_WIDTH = 32
TEACHER = "deep-skip"


@dataclass(frozen=True)
class Shape:
    """How a stack is built.

    Attributes:
        depth: Number of convolutions.
        strides: Places of those with stride 2, the first of which doubles the width.
        skip: Whether shortcuts go around the others.
    """

    depth: int
    strides: tuple[int, ...]
    skip: bool = False


SHAPES = {
    "shallow": Shape(3, (1, 2)),
    "deep": Shape(9, (3, 6)),
    "deep-skip": Shape(9, (3, 6), skip=True),
}
_CONVS: dict[int, tuple[Any, Any]] = {
    1: (nn.Conv1d, nn.BatchNorm1d),
    2: (nn.Conv2d, nn.BatchNorm2d),
}


class Stack(nn.Module):
    """Convolutions, each with its BatchNorm and a ReLU, the mean over the axes, a linear head.

    Args:
        shape: How it is built.
        axes: 1 for series, 2 for images.
        channels: Of the input.
        classes: Number of classes.
        width: Channels before the first stride.
    """

    def __init__(self, shape: Shape, axes: int, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.skip = shape.skip
        first = shape.strides[0]
        sizes = [channels, *(width if place < first else 2 * width for place in range(shape.depth))]
        conv, norm = _CONVS[axes]
        self.convs = nn.ModuleList(
            conv(*pair, 3, stride=2 if place in shape.strides else 1, padding=1, bias=False)
            for place, pair in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
        )
        self.norms = nn.ModuleList(norm(size) for size in sizes[1:])
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(b, classes)`` of ``(b, channels, ..)``."""
        hidden = inputs
        for conv, norm in zip(self.convs, self.norms, strict=True):
            made = F.relu(norm(conv(hidden)))
            hidden = hidden + made if self.skip and made.shape == hidden.shape else made
        logits: Tensor = self.head(hidden.flatten(2).mean(2))
        return logits


def maker(name: str, axes: int, channels: int, classes: int, width: int) -> Callable[[], Stack]:
    """Makes fresh stacks of a name in `SHAPES`."""
    return lambda: Stack(SHAPES[name], axes, channels, classes, width)


def seeded(make: Callable[[], Stack], seed: int) -> Stack:
    """A stack whose start depends on the seed alone; torch's random state comes back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
