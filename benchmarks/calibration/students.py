"""The network whose exports are paired: small, and with an operator for every kind of change.

    conv, relu, conv, relu, Resize x 2, Slice, conv, relu, mean over pixels,
    linear - tanh(another linear), relu, head

Its sizes are chosen for the time of one run on one core or on one large GPU. The time that is
reported is the one measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import opdf_compile as opdf

WIDTH, CLASSES = 256, 10
INPUT = "x"


@dataclass(frozen=True)
class Size:
    """One size of the network.

    Attributes:
        channels: Of every convolution.
        image: Height and width of the input.
        batch: Samples in a run.
    """

    channels: int
    image: int
    batch: int = 1

    @property
    def shape(self) -> dict[str, tuple[int, ...]]:
        """The shape of the input, by its name."""
        return {INPUT: (self.batch, 3, self.image, self.image)}


# The name is the time of one run that is meant.
SIZES = {
    "cpu": {"0.2 ms": Size(16, 48), "5 ms": Size(48, 128)},
    "cuda": {"0.2 ms": Size(32, 64), "5 ms": Size(128, 128, 64)},
}


class Student(nn.Module):
    """The network."""

    def __init__(self, channels: int) -> None:
        """Random weights."""
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.third = nn.Conv2d(channels, channels, 3, stride=2)
        self.left = nn.Linear(channels, WIDTH)
        self.right = nn.Linear(channels, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Scores, shape (batch, classes)."""
        found = torch.relu(self.second(torch.relu(self.first(x))))
        found = F.interpolate(found, scale_factor=2.0, mode="nearest")
        found = torch.relu(self.third(found[:, :, 1:-1, 1:-1])).mean((2, 3))
        # A branch of its own kind on each side: swapping equal ones would change no graph.
        mixed = self.left(found) - torch.tanh(self.right(found))
        scores: Tensor = self.head(torch.relu(mixed))
        return scores


def export_student(folder: Path, size: Size, seed: int, opset: int | None = None) -> Path:
    """Export one student with its check data, unless the folder holds it; return the ONNX file."""
    path = folder / f"student-{size.channels}-{size.image}-{seed}-{opset or 'usual'}.onnx"
    if not path.exists():
        torch.manual_seed(seed)
        student = Student(size.channels).eval()
        opdf.export_onnx(student, (torch.randn(2, 3, size.image, size.image),), path, opset=opset)
    return path
