"""Students and teachers: small networks without BatchNorm, so that many train side by side.

Their convolutions are ordinary `nn.Conv1d` modules, which the package finds and over-parameterises;
only the way in which they are computed differs: as one matrix product over patches, because a
batched matrix product is what a fleet of replicas runs fast (a grouped convolution is not).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STUDENT_WIDTH = {"mlp": 32, "cnn": 12}
TEACHER_WIDTH = {"mlp": 256, "cnn": 64}


class Mlp(nn.Module):
    """inputs -> width -> width -> classes, with ReLU."""

    def __init__(self, inputs: int, classes: int, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(b, classes)`` of ``(b, length, channels)``."""
        hidden = F.relu(self.first(inputs.flatten(1)))
        logits: Tensor = self.head(F.relu(self.second(hidden)))
        return logits


class Cnn(nn.Module):
    """Three convolutions of stride 2 over time, and a linear head."""

    def __init__(self, length: int, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, width, 5, stride=2, padding=2)
        self.second = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.third = nn.Conv1d(width, 2 * width, 3, stride=2, padding=1)
        for _ in range(3):
            length = (length + 1) // 2
        self.head = nn.Linear(length * 2 * width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(b, classes)`` of ``(b, length, channels)``."""
        hidden = inputs
        for conv in (self.first, self.second, self.third):
            hidden = F.relu(convolve(hidden, conv))
        logits: Tensor = self.head(hidden.flatten(1))
        return logits


def convolve(inputs: Tensor, conv: nn.Conv1d) -> Tensor:
    """What `conv` computes, for ``(b, length, channels)``, as one product over patches."""
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    padded = F.pad(inputs, (0, 0, padding, padding))
    span = padded.shape[1] - kernel
    patches = [padded[:, j : j + span + 1 : stride] for j in range(kernel)]
    matrix = conv.weight.permute(2, 1, 0).flatten(0, 1)
    bias = conv.bias if conv.bias is not None else torch.zeros(())
    return torch.cat(patches, dim=2) @ matrix + bias


def maker(
    kind: str, shape: tuple[int, int], classes: int, widths: dict[str, int]
) -> Callable[[], nn.Module]:
    """Makes fresh networks of a kind ("mlp" or "cnn") for inputs of shape (length, channels)."""
    length, channels = shape
    if kind == "mlp":
        return lambda: Mlp(length * channels, classes, widths[kind])
    return lambda: Cnn(length, channels, classes, widths[kind])


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network whose start depends on the seed alone; torch's random state comes back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
