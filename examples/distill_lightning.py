"""Lightning: a weighted sum of losses, the parts of which are logged, and `Overparam`.

python examples/distill_lightning.py [OUT]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import opdf_compile as opdf
from opdf_compile.distill import CorrelationLoss, SkewKL, WeightedSum
from opdf_compile.io.torchvision_shim import prepare_torchvision

prepare_torchvision()  # Does nothing where torchvision fits torch; Lightning's metrics import it.

import lightning  # noqa: E402


class Distillation(lightning.LightningModule):
    """A small student that learns the choices of a larger network."""

    def __init__(self) -> None:
        """Make both networks, and the loss."""
        super().__init__()
        self.student = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        self.teacher = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 8))
        self.teacher.requires_grad_(False)
        self.loss = WeightedSum({"skew": (1.0, SkewKL(0.1)), "relation": (1.0, CorrelationLoss())})
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        """The loss of one batch."""
        (x,) = batch
        total: Tensor = self.loss(self.student(x), self.teacher(x))
        self.log_dict(self.loss.parts)
        self.losses.append(total.item())
        return total

    def configure_optimizers(self) -> Any:
        """Over-parameterise the student alone; the teacher has no part in it."""
        return opdf.Overparam(self.student, torch.optim.AdamW, lr=1e-2, cores=3)


def main(folder: Path) -> tuple[Distillation, nn.Module]:
    """Train, then fold the student."""
    lightning.seed_everything(0)
    module = Distillation()
    trainer = lightning.Trainer(
        default_root_dir=folder,
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        max_epochs=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = TensorDataset(torch.randn(256, 16))
    trainer.fit(module, DataLoader(data, batch_size=16, shuffle=True))
    print(f"loss {module.losses[0]:.4f} -> {module.losses[-1]:.4f}")
    parts = {name: f"{value.item():.4f}" for name, value in module.loss.parts.items()}
    print(f"parts {parts}")
    (opt,) = trainer.optimizers
    assert isinstance(opt, opdf.Overparam)
    student = opdf.fold(opt)
    torch.save(student.state_dict(), folder / "student.pt")
    return module, student


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
