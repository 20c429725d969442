"""A stack of convolution blocks as an author of RepVGG or MobileOne would write it by hand."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class PlainBlock(nn.Module):
    """A 3 x 3 convolution, its norm and a ReLU."""

    def __init__(self, reads: int, makes: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(reads, makes, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(makes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, reads, height, width) -> (batch, makes, height / stride, width / stride)."""
        return F.relu(self.norm(self.conv(x)))


class BranchedBlock(PlainBlock):
    """The same with a 1 x 1 branch, copies of the 3 x 3 one, and the identity where it fits."""

    def __init__(self, reads: int, makes: int, stride: int, copies: int) -> None:
        super().__init__(reads, makes, stride)
        self.copies = nn.ModuleList(
            nn.Sequential(nn.Conv2d(reads, makes, 3, stride, 1, bias=False), nn.BatchNorm2d(makes))
            for _ in range(copies - 1)
        )
        self.point = nn.Sequential(
            nn.Conv2d(reads, makes, 1, stride, bias=False), nn.BatchNorm2d(makes)
        )
        fits = reads == makes and stride == 1
        self.identity = nn.BatchNorm2d(makes) if fits else None

    def forward(self, x: Tensor) -> Tensor:
        """As the plain block's."""
        out = self.norm(self.conv(x)) + self.point(x)
        for copy in self.copies:
            out = out + copy(x)
        if self.identity is not None:
            out = out + self.identity(x)
        return F.relu(out)


def stack(widths: Sequence[int], copies: int | None = None) -> nn.Module:
    """Blocks of these widths, every second one of stride 2, and a linear head.

    Args:
        widths: Channels of each block.
        copies: Convolutions of a branched block; None makes plain ones.
    """
    layers: list[nn.Module] = []
    reads = 3
    for place, width in enumerate(widths):
        stride = 1 + place % 2
        plain = copies is None
        block = (
            PlainBlock(reads, width, stride)
            if plain
            else BranchedBlock(reads, width, stride, copies or 1)
        )
        layers.append(block)
        reads = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(reads, 10))
