"""Trainer and Lightning resume a wrapper around an optimizer, whose state has a form of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import pytest
import torch
from quick import quick
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import opdf_compile as opdf

Make = Callable[..., Any]


class Slow(torch.optim.Optimizer):
    """Steps AdamW, and every other time goes half way back to slow weights."""

    def __init__(self, params: Any, **options: Any) -> None:
        self.base = torch.optim.AdamW(params, **options)
        super().__init__(self.base.param_groups, self.base.defaults)
        self.param_groups = self.base.param_groups
        self.times = 0
        self.slow = [p.detach().clone() for p in self.all()]

    def all(self) -> list[Tensor]:
        return [p for group in self.base.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.base.step(closure)
        self.times += 1
        for slow, p in zip(self.slow, self.all(), strict=True):
            if self.times % 2 == 0:
                p.copy_(slow.lerp_(p, 0.5))
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"times": self.times, "slow": tuple(self.slow), "base": self.base.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.times, self.slow = state_dict["times"], list(state_dict["slow"])
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups


def by_trainer(bert: Make, make_trainer: Make, folder: Path, resume: bool) -> Any:
    student = bert(seed=7 if resume else 0)
    made = opdf.overparam_class(student, opdf.plan(student, cores=3), Slow)
    trainer = make_trainer(
        student,
        (made, {"lr": 1e-2}),
        output_dir=str(folder / ("resumed" if resume else "whole")),
        max_steps=6,
        save_strategy="steps",
        save_steps=3,
        lr_scheduler_type="cosine",
    )
    trainer.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-3") if resume else None)
    return student


def by_lightning(bert: Make, make_trainer: Make, folder: Path, resume: bool) -> Any:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(7 if resume else 0)
            self.student = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8))

        def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
            return F.mse_loss(self.student(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return opdf.Overparam(self.student, Slow, lr=1e-2, cores=3)

    drawn = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(24, 12, generator=drawn), torch.randn(24, 8, generator=drawn))
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        default_root_dir=folder / ("resumed" if resume else "whole"),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder / "checkpoints", "{epoch}", save_top_k=-1)],
    )
    module = Module()
    where = folder / "checkpoints" / "epoch=0.ckpt" if resume else None
    trainer.fit(module, DataLoader(data, batch_size=8), ckpt_path=where)
    return module.student


@pytest.mark.parametrize("run", quick([by_trainer, by_lightning], {by_lightning}))
def test_a_state_of_the_class_s_own_form_comes_back(
    run: Any, bert: Make, make_trainer: Make, tmp_path: Path, monkeypatch: Any
) -> None:
    whole = compare.weights(run(bert, make_trainer, tmp_path, False))
    assert compare.equal(compare.weights(run(bert, make_trainer, tmp_path, True)), whole)
    # It is what makes the run the same: with slow weights of another time it is another one.
    load = Slow.load_state_dict

    def without(self: Slow, state: dict[str, Any]) -> None:
        load(self, {**state, "slow": tuple(value.clone() for value in self.slow)})

    monkeypatch.setattr(Slow, "load_state_dict", without)
    assert not compare.equal(compare.weights(run(bert, make_trainer, tmp_path, True)), whole)
