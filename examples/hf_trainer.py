"""Hugging Face Trainer: one argument, `optimizer_cls_and_kwargs`, is all that differs.

Trainer makes its own param groups (no decay on biases and norms), schedule, clipping, accumulation,
checkpoints and resume; the best checkpoint is loaded at the end, and its weights are shipped.

    python examples/hf_trainer.py [OUT]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import opdf_compile as opdf
from opdf_compile.io.torchvision_shim import prepare_torchvision

prepare_torchvision()  # Does nothing where torchvision fits torch; transformers imports it.

from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

LENGTH, WORDS = 12, 40


def make_student() -> BertForSequenceClassification:
    """A tiny BERT with random weights; nothing is downloaded."""
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
    )
    return BertForSequenceClassification(config)


def make_data(rows: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Sentences of random words; the label says whether the first one is of the upper half."""
    words = torch.randint(0, WORDS, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": (row[0] >= WORDS // 2).long()} for row in words]


def make_trainer(student: BertForSequenceClassification, folder: Path, **changes: Any) -> Trainer:
    """A Trainer as anyone would write it, but for its last argument."""
    options: dict[str, Any] = {
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 1.0,
        "weight_decay": 0.01,
        "num_train_epochs": 4,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": [],
        "disable_tqdm": True,
    }
    plan = opdf.plan(student, cores=3)
    return Trainer(
        student,
        TrainingArguments(str(folder), **(options | changes)),
        train_dataset=make_data(512, seed=1),
        eval_dataset=make_data(128, seed=2),
        optimizer_cls_and_kwargs=(opdf.overparam_class(student, plan), {"lr": 3e-3}),
    )


def main(folder: Path) -> float:
    """Train, take the best checkpoint's weights, save the student."""
    torch.manual_seed(0)
    student = make_student()
    trainer = make_trainer(student, folder)
    trainer.train()
    opt = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # Accelerate wraps it.
    assert isinstance(opt, opdf.Overparam)
    print(opt.summary())
    loss = float(trainer.evaluate()["eval_loss"])
    print(f"best checkpoint {trainer.state.best_model_checkpoint}, loss {loss:.4f}")

    # The weights are now those of the best checkpoint, the cores those of the last step. So the
    # student ships as it stands, an ordinary model with plain weights; to go on training from it,
    # or to fold, call `absorb()` on the optimizer first.
    student.save_pretrained(folder / "student")
    return loss


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
