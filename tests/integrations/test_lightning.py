"""Lightning's Trainer steps an Overparam as it steps any optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import opdf_compile as opdf
from opdf_compile.errors import WeightsChanged

RATE, CLIP, EPOCHS = 0.05, 0.05, 4


def make_student(dropout: float) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(12, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8)
    ).double()


def make_data() -> TensorDataset:
    made = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(32, 12, generator=made, dtype=torch.float64),
        torch.randn(32, 8, generator=made, dtype=torch.float64),
    )


def make_optimizer(student: nn.Module, kind: Callable[..., Any], **options: Any) -> opdf.Overparam:
    return opdf.Overparam(student, kind, lr=RATE, cores=3, **options)


def make_module(
    kind: Callable[..., Any] = torch.optim.SGD, dropout: float = 0.0, **options: Any
) -> Any:
    import lightning

    class Module(lightning.LightningModule):
        """One student, one Overparam and a schedule by epoch."""

        def __init__(self) -> None:
            super().__init__()
            self.student = make_student(dropout)

        def on_train_batch_start(self, _batch: Any, index: int) -> None:
            # Lightning's checkpoints hold no random state, so dropout must not depend on it.
            torch.manual_seed(100 * self.current_epoch + index)

        def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
            return F.mse_loss(self.student(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            self.opt = make_optimizer(self.student, kind, **options)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, EPOCHS)
            return {"optimizer": self.opt, "lr_scheduler": schedule}

    return Module()


def fit(module: Any, folder: Path, epochs: int = EPOCHS, spied: Any = None, **options: Any) -> Any:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Spying(lightning.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.seen = spied(pl_module.opt) if spied else None

    watch = Spying()
    where = options.pop("ckpt_path", None)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch, ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
        **options,
    )
    trainer.fit(module, DataLoader(make_data(), batch_size=8), ckpt_path=where)
    return trainer, watch.seen


def by_hand(*, accumulation: int = 2, clip: float = CLIP, schedule: bool = True) -> nn.Module:
    """What Lightning is asked to do, written out."""
    student = make_student(0.0)
    opt = make_optimizer(student, torch.optim.SGD, momentum=0.9)
    batches = list(DataLoader(make_data(), batch_size=8))
    for epoch in range(EPOCHS):
        share = 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS)) if schedule else 1.0
        opt.param_groups[0]["lr"] = RATE * share
        for start in range(0, len(batches), accumulation):
            opt.zero_grad()
            for x, y in batches[start : start + accumulation]:
                (F.mse_loss(student(x), y) / accumulation).backward()
            nn.utils.clip_grad_norm_(student.parameters(), clip)
            opt.step()
    return student


def test_accumulation_clipping_and_schedule_are_those_of_a_loop_by_hand(
    tmp_path: Path, spy: Any
) -> None:
    module = make_module(momentum=0.9)
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": CLIP}
    _, seen = fit(module, tmp_path, spied=spy, **options)
    # Automatic optimization passes the forward and backward as a closure, which clips at its end.
    assert len(seen.closures) == 2 * EPOCHS and all(map(callable, seen.closures))
    rates = [RATE * 0.5 * (1 + math.cos(math.pi * e / EPOCHS)) for e in range(EPOCHS) for _ in "12"]
    assert seen.rates == pytest.approx(rates, rel=1e-9)
    found = compare.weights(module.student)

    def apart(**changes: Any) -> float:
        return float(compare.distance(compare.weights(by_hand(**changes)), found))

    assert apart() < 1e-12
    # Each of the three is seen: without it the weights are far away.
    assert apart(accumulation=1) > 1e-4
    assert apart(clip=1e9) > 1e-4
    assert apart(schedule=False) > 1e-4
    module.opt.program.require_unchanged()
    folded = compare.weights(opdf.fold(module.opt))
    assert compare.distance(folded, found) < 1e-15


def test_an_optimizer_that_evaluates_its_closure_often(tmp_path: Path) -> None:
    module = make_module(torch.optim.LBFGS, max_iter=4, line_search_fn="strong_wolfe")
    x, y = make_data().tensors
    before = F.mse_loss(module.student(x), y).item()
    fit(module, tmp_path)
    assert F.mse_loss(module.student(x), y).item() < 0.9 * before
    module.opt.program.require_unchanged()


def test_resume_is_bit_equal_to_the_uninterrupted_run(tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": CLIP}

    def module() -> Any:
        return make_module(torch.optim.AdamW, dropout=0.2, weight_decay=0.1)

    whole = module()
    fit(whole, tmp_path / "whole", **options)
    checkpoint = tmp_path / "whole" / "epoch=1.ckpt"
    weights = torch.load(checkpoint, weights_only=False)["state_dict"]
    assert not compare.equal(weights, compare.weights(whole))

    resumed = module()
    nn.init.zeros_(resumed.student[0].weight)  # The start must come out of the checkpoint.
    fit(resumed, tmp_path / "resumed", ckpt_path=checkpoint, **options)
    assert compare.equal(compare.weights(resumed), compare.weights(whole))
    assert compare.equal(resumed.opt.state_dict(), whole.opt.state_dict())
    kept = whole.opt.state_by_name()["0.weight"]
    assert float(kept["cores.0.step"]) == 8 and "cores.2.exp_avg_sq" in kept

    # The weights alone do not make that run.
    fresh = module()
    fresh.load_state_dict(weights)
    fit(fresh, tmp_path, epochs=2, **options)
    assert not compare.equal(compare.weights(fresh), compare.weights(whole))


def test_weights_loaded_behind_its_back_stop_the_next_step(tmp_path: Path) -> None:
    module = make_module()
    fit(module, tmp_path)
    other = {name: value + 0.01 for name, value in compare.weights(module.student).items()}
    module.student.load_state_dict(other)
    with pytest.raises(WeightsChanged, match="2 weights changed since the last refresh"):
        opdf.fold(module.opt)
    with pytest.raises(WeightsChanged, match="2 weights changed since the last refresh"):
        module.opt.step()
    assert compare.equal(compare.weights(module.student), other)
