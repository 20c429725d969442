"""One process of `test_two_processes_train_and_resume_as_one`; writes what it held to rank*.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import opdf_compile as opdf


class Run:
    """A prepared training over batches that add up to 8 rows on all processes."""

    def __init__(self) -> None:
        """Prepare it from the same start, whatever ran before."""
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8)).double()
        self.opt = opdf.Overparam(self.student, torch.optim.AdamW, lr=0.01, cores=3)
        made = torch.Generator().manual_seed(1)
        data = TensorDataset(
            torch.randn(48, 12, generator=made, dtype=torch.float64),
            torch.randn(48, 8, generator=made, dtype=torch.float64),
        )
        self.batch = 8 // self.accelerator.num_processes
        prepared = self.accelerator.prepare(
            self.student, self.opt, DataLoader(data, batch_size=self.batch)
        )
        self.model, self.optimizer, self.loader = prepared

    def epoch(self) -> None:
        """Six micro-batches, three steps."""
        for x, y in self.loader:
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(F.mse_loss(self.model(x), y))
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 0.5)
                self.optimizer.step()
                self.optimizer.zero_grad()

    def weights(self) -> dict[str, Tensor]:
        """A copy of the student's weights."""
        return {name: value.clone() for name, value in self.student.state_dict().items()}


def main(folder: Path) -> None:
    """Train through, resume from half way, and go on from the weights alone."""
    whole = Run()
    found: dict[str, Any] = {"batch": whole.batch, "start": whole.weights()}
    whole.epoch()
    half = whole.weights()
    whole.accelerator.save_state(str(folder / "state"))
    whole.epoch()
    found |= {"whole": whole.weights(), "whole state": whole.opt.state_dict()["state"]}

    again = Run()
    again.accelerator.load_state(str(folder / "state"))
    again.epoch()
    found |= {"resumed": again.weights(), "resumed state": again.opt.state_dict()["state"]}

    bare = Run()
    bare.student.load_state_dict(half)
    bare.opt.absorb()
    bare.epoch()
    found["weights alone"] = bare.weights()
    torch.save(found, folder / f"rank{whole.accelerator.process_index}.pt")
    whole.accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
