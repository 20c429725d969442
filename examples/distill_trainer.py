"""Hugging Face Trainer: a teacher's layers and logits by one method and one argument.

python examples/distill_trainer.py [OUT]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import opdf_compile as opdf
from opdf_compile import distill
from opdf_compile.io.torchvision_shim import prepare_torchvision

prepare_torchvision()  # Does nothing where torchvision fits torch; transformers imports it.

from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

LENGTH, WORDS = 12, 40


def make_model(layers: int) -> BertForSequenceClassification:
    """A tiny BERT with random weights; nothing is downloaded."""
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
    )
    return BertForSequenceClassification(config)


def make_data(rows: int = 256) -> list[dict[str, torch.Tensor]]:
    """Sentences of random words."""
    mask = torch.ones(LENGTH, dtype=torch.int64)
    words = torch.randint(0, WORDS, (rows, LENGTH))
    return [{"input_ids": row, "attention_mask": mask} for row in words]


class Distiller(Trainer):
    """A Trainer whose loss compares with a teacher."""

    def __init__(self, *args: Any, teacher: Any, loss: distill.WeightedSum, **kwargs: Any) -> None:
        """Keep the teacher beside the model: it is not trained, saved or wrapped."""
        super().__init__(*args, **kwargs)
        self.teacher, self.loss = teacher.eval().requires_grad_(False), loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the losses on one batch."""
        outputs = model(**inputs, output_hidden_states=True)
        with torch.no_grad():
            wanted = self.teacher.to(model.device)(**inputs, output_hidden_states=True)
        total = self.loss(outputs, wanted, inputs)
        return (total, outputs) if return_outputs else total


def main(folder: Path) -> float:
    """Warm-start a student of two layers from four, and distil it."""
    torch.manual_seed(0)
    teacher, student = make_model(4), make_model(2)
    print(distill.copy_layers(student, teacher, distill.every_kth(student, teacher)))
    last = distill.Term(
        distill.HiddenStateLoss(), "hidden_states.2", "hidden_states.4", mask="attention_mask"
    )
    loss = distill.WeightedSum({"logits": (1.0, distill.HintonKD(2.0)), "states": (1.0, last)})
    options: dict[str, Any] = {"max_steps": 60, "report_to": [], "disable_tqdm": True}
    options |= {"remove_unused_columns": False, "use_cpu": not torch.cuda.is_available()}
    trainer = Distiller(
        student,
        TrainingArguments(str(folder), logging_steps=30, **options),
        train_dataset=make_data(),
        optimizer_cls_and_kwargs=(opdf.overparam_class(student, opdf.plan(student)), {"lr": 4e-3}),
        teacher=teacher,
        loss=loss,
    )
    trainer.train()
    first, last_loss = (row["loss"] for row in trainer.state.log_history if "loss" in row)
    print(f"loss {first:.4f} -> {last_loss:.4f}")
    student.save_pretrained(folder / "student")
    return float(last_loss)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
