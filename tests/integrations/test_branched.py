"""Trainers step a student with branches as they step any module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sites import Stack, batch, stirred
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import opdf_compile as opdf

# Sums over 72 taps and a few layers, in float32, after two updates of size 0.1.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def resnet() -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    return stirred(ResNetForImageClassification(config))


def images() -> list[dict[str, Tensor]]:
    drawn = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return [{"pixel_values": row, "labels": (row.mean() > 0).long()} for row in drawn]


@pytest.mark.slow
def test_trainer_saves_resumes_and_folds(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    plain, rows = resnet(), images()
    x = torch.stack([row["pixel_values"] for row in rows[:4]])
    plan = opdf.plan(opdf.trace(plain, {"pixel_values": x}), parametrization="repvgg")

    def run(steps: int, resume: str | None = None) -> Any:
        options: dict[str, Any] = {
            "output_dir": str(tmp_path),
            "max_steps": steps,
            "save_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "lr_scheduler_type": "constant",
            "report_to": [],
            "use_cpu": True,
        }
        model = opdf.branch(plain, plan)
        trainer = Trainer(model, TrainingArguments(**options), train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = run(4)
    resumed = run(4, str(tmp_path / "checkpoint-2"))
    folded = opdf.fold(whole)
    assert type(folded) is type(plain)
    assert list(folded.state_dict()) == list(plain.state_dict())
    for name, value in opdf.fold(resumed).state_dict().items():
        assert torch.equal(value, folded.state_dict()[name]), name
    with torch.no_grad():
        wanted = whole.eval()(x).logits
        torch.testing.assert_close(folded.eval()(x).logits, wanted, **CLOSE)
        assert not torch.allclose(plain.eval()(x).logits, wanted, atol=1e-2)
    folded.save_pretrained(tmp_path / "student")
    again = type(plain).from_pretrained(tmp_path / "student")
    assert torch.equal(again(x).logits, folded(x).logits)


def stack() -> nn.Module:
    torch.manual_seed(0)
    return stirred(Stack()).double()


def branched() -> nn.Module:
    plain = stack()
    return opdf.branch(plain, opdf.plan(opdf.trace(plain, (batch(),)), parametrization="dbb"))


def by_hand() -> nn.Module:
    model = branched().train()
    inner = torch.optim.SGD(model.parameters(), lr=0.05)
    for seed in range(3):
        inner.zero_grad()
        model(batch(seed=seed)).square().mean().backward()
        inner.step()
    return model


def test_lightning(tmp_path: Path) -> None:
    import lightning

    class Module(lightning.LightningModule):
        """A student with branches, in a module that trains it."""

        def __init__(self) -> None:
            super().__init__()
            self.student = branched()

        def training_step(self, given: list[Tensor], _index: int) -> Tensor:
            made: Tensor = self.student(given[0]).square().mean()
            return made

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.student.parameters(), lr=0.05)

    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rows = torch.cat([batch(seed=seed) for seed in range(3)])
    trainer.fit(module, DataLoader(TensorDataset(rows), batch_size=4))
    same(module.student)


def test_accelerate() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = branched().train()
    prepared, inner = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.05))
    for seed in range(3):
        inner.zero_grad()
        accelerator.backward(prepared(batch(seed=seed)).square().mean())
        inner.step()
    same(accelerator.unwrap_model(prepared))


def same(trained: Any) -> None:
    """It is what a loop by hand gives, and folds to the student's own keys."""
    wanted = opdf.fold(by_hand()).state_dict()
    found = opdf.fold(trained).state_dict()
    assert list(found) == list(stack().state_dict())
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-12)
    assert not torch.allclose(found["body.0.weight"], stack().state_dict()["body.0.weight"])


@pytest.mark.parametrize("precision", ["bf16"])
def test_accelerate_in_half_precision(precision: str) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    model = branched().float().train()
    prepared, inner = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.05))
    accelerator.backward(prepared(batch(dtype=torch.float32)).square().mean())
    inner.step()
    folded = opdf.fold(accelerator.unwrap_model(prepared))
    assert all(torch.isfinite(value).all() for value in folded.state_dict().values())
    assert folded.body[0].weight.dtype == torch.float32
