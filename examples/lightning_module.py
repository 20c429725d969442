"""Lightning: `configure_optimizers` returns an `opdf.Overparam`; nothing else differs.

python examples/lightning_module.py [OUT]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import opdf_compile as opdf
from opdf_compile.io.torchvision_shim import prepare_torchvision

prepare_torchvision()  # Does nothing where torchvision fits torch; Lightning's metrics import it.

import lightning  # noqa: E402


class Distillation(lightning.LightningModule):
    """A small student that learns the outputs of a larger network."""

    def __init__(self, epochs: int = 4) -> None:
        """Make both networks."""
        super().__init__()
        self.epochs = epochs
        self.student = nn.Sequential(
            nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 8)
        )
        self.teacher = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 8))
        self.teacher.requires_grad_(False)
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        """The loss of one batch."""
        (x,) = batch
        loss = F.mse_loss(self.student(x), self.teacher(x))
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        """Over-parameterise the student alone; the teacher has no part in it."""
        opt = opdf.Overparam(self.student, torch.optim.AdamW, lr=1e-2, cores=3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, self.epochs)
        return {"optimizer": opt, "lr_scheduler": schedule}


def make_trainer(folder: Path, epochs: int) -> lightning.Trainer:
    """A Trainer as anyone would write it."""
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        max_epochs=epochs,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def make_data() -> DataLoader[tuple[Tensor, ...]]:
    """Random inputs, shuffled."""
    return DataLoader(TensorDataset(torch.randn(256, 16)), batch_size=16, shuffle=True)


def main(folder: Path) -> tuple[Distillation, nn.Module]:
    """Train, then fold the student."""
    lightning.seed_everything(0)
    module = Distillation()
    trainer = make_trainer(folder, module.epochs)
    trainer.fit(module, make_data())
    (opt,) = trainer.optimizers
    assert isinstance(opt, opdf.Overparam)
    print(opt.summary())
    print(f"loss {module.losses[0]:.4f} -> {module.losses[-1]:.4f}")
    student = opt.fold()
    torch.save(student.state_dict(), folder / "student.pt")
    return module, student


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
