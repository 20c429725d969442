"""Accelerate: `prepare` takes an `opdf.Overparam` as it takes any optimizer.

    python examples/accelerate_loop.py [OUT]
    accelerate launch --multi_gpu --num_processes 2 examples/accelerate_loop.py [OUT]
    torchrun --nproc-per-node 2 examples/accelerate_loop.py [OUT]

Without a GPU both start two processes on the CPU (`accelerate launch --cpu` would start one). With
several processes only the gradients of the plain weights are reduced; every process steps the same
cores with the same gradients. `process_group=` shares the cores out instead.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import opdf_compile as opdf

EPOCHS = 3


def make_student() -> nn.Module:
    """A small network."""
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))


def main(folder: Path) -> tuple[list[float], nn.Module]:
    """Train on one process or many, then fold on each and save on the first."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=2)
    torch.manual_seed(0)
    student, teacher = make_student(), nn.Linear(16, 8)
    data = TensorDataset(x := torch.randn(256, 16), teacher(x).detach())
    opt = opdf.Overparam(student, torch.optim.AdamW, lr=1e-2, cores=3)
    if accelerator.is_main_process:
        print(opt.summary())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, EPOCHS * 16)
    loader = DataLoader(data, batch_size=16, shuffle=True)
    model, optimizer, loader, schedule = accelerator.prepare(student, opt, loader, schedule)

    losses = []
    for _ in range(EPOCHS):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = F.mse_loss(model(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            losses.append(float(accelerator.reduce(loss.detach(), "mean")))
    accelerator.save_state(str(folder / "state"))

    folded = opt.fold()
    if accelerator.is_main_process:
        print(f"{accelerator.num_processes} processes, loss {losses[0]:.4f} -> {losses[-1]:.4f}")
        torch.save(folded.state_dict(), folder / "student.pt")
    accelerator.end_training()
    return losses, folded


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
