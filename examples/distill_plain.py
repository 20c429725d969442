"""Distil a shallow student in a loop of one's own: warm start, losses, Overparam, a bundle.

python examples/distill_plain.py [OUT]
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import opdf_compile as opdf
from opdf_compile.distill import HintonKD, TaskLoss, WeightedSum, copy_layers, every_kth


class Network(nn.Module):
    """Residual blocks; the teacher has more of them."""

    def __init__(self, depth: int, width: int = 32) -> None:
        """Make a network of some depth."""
        super().__init__()
        self.enter = nn.Linear(16, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Features (b, 16) to logits (b, 4)."""
        h = self.enter(x)
        for block in self.blocks:
            h = h + F.relu(block(h))
        logits: Tensor = self.head(h)
        return logits


def make_data(rows: int = 512) -> tuple[Tensor, Tensor]:
    """Points, and which of four directions each of them is nearest to."""
    x = torch.randn(rows, 16)
    return x, (x @ torch.randn(16, 4)).argmax(1)


def train_teacher(x: Tensor, y: Tensor) -> Network:
    """A deeper network that knows the task."""
    teacher = Network(depth=4)
    opt = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    for _ in range(100):
        opt.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        opt.step()
    return teacher.eval().requires_grad_(False)


def main(out: Path) -> tuple[list[float], opdf.ParityReport]:
    """Train a teacher, distil it, export, and compare with the untouched student."""
    torch.manual_seed(0)
    x, y = make_data()
    teacher, student = train_teacher(x, y), Network(depth=2)
    untouched = copy.deepcopy(student)

    layer_map = every_kth(student, teacher)
    print(layer_map.describe(student, teacher))
    print(copy_layers(student, teacher, layer_map))

    loss = WeightedSum({"soft": (0.9, HintonKD(4.0)), "hard": (0.1, TaskLoss())})
    opt = opdf.Overparam(student, torch.optim.AdamW, lr=1e-3, cores=3)
    losses = []
    for _ in range(60):
        chosen = torch.randperm(len(x))[:128]
        opt.zero_grad()
        total = loss(student(x[chosen]), teacher(x[chosen]), {"labels": y[chosen]})
        total.backward()
        opt.step()
        losses.append(total.item())
    parts = ", ".join(f"{name} {value:.3f}" for name, value in loss.parts.items())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} ({parts})")

    opdf.export_onnx(opdf.fold(opt), (x[:8],), out, reference=untouched)
    report = opdf.verify(out, only="structure,numerics")
    print(report)
    return losses, report


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "bundle"
        sys.exit(0 if main(target)[1] else 1)
