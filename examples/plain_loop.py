"""A training loop of one's own, made over-parameterised by changing one line.

The schedule, the clipping, the accumulation and the checkpoint are the usual ones, because
`opdf.Overparam` is a torch optimizer. At the end the student is exported and compared with the
export of the student that was never touched.

    python examples/plain_loop.py [OUT]
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

STEPS, ACCUMULATION = 40, 2


def make_student() -> nn.Module:
    """A small image classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 4),
    )


def make_data() -> tuple[Tensor, Tensor]:
    """Images of 8x8 in which one quarter is brighter; the label says which."""
    labels = torch.arange(256) % 4
    images = torch.randn(256, 1, 8, 8)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[:, row : row + 4, column : column + 4] += 0.7
    return images, labels


def train(student: nn.Module, opt: opdf.Overparam, images: Tensor, labels: Tensor) -> list[float]:
    """The loop; nothing in it knows about cores."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS)
    losses = []
    for _ in range(STEPS):
        opt.zero_grad()
        total = 0.0
        for chosen in torch.randperm(len(images))[:64].chunk(ACCUMULATION):
            loss = F.cross_entropy(student(images[chosen]), labels[chosen]) / ACCUMULATION
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        opt.step()
        schedule.step()
        losses.append(total)
    return losses


def main(out: Path) -> opdf.ParityReport:
    """Train, fold, export, and compare with the untouched student."""
    torch.manual_seed(0)
    student, (images, labels) = make_student(), make_data()
    untouched = copy.deepcopy(student)

    opt = opdf.Overparam(student, torch.optim.AdamW, lr=1e-2, weight_decay=1e-2, cores=3)
    print(opt.summary())
    losses = train(student, opt, images, labels)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")

    # While it trains, the student already holds plain weights. Folding composes them once more, in
    # float64, and gives a student of its own.
    shipped = opdf.fold(opt)
    opdf.export_onnx(shipped, (images[:8],), out, reference=untouched, plan=opt.plan.to_json())
    report = opdf.verify(out, only="structure,numerics")
    print(report)
    return report


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "bundle"
        sys.exit(0 if main(target) else 1)
