"""Trainers keep process-wide state and import torchvision; each test starts without the first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opdf_compile.io.torchvision_shim import prepare_torchvision

# transformers and Lightning import torchvision, whose wheel may not fit a CPU-only torch.
prepare_torchvision()

WORDS, LENGTH = 20, 6


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate remembers precision and device of the first use, and speaks through variables."""
    from accelerate.state import AcceleratorState, GradientState

    before = dict(os.environ)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def bert() -> Callable[..., nn.Module]:
    """Makes a one-layer BERT classifier; the same weights for the same seed."""

    def make(seed: int = 0, dropout: float = 0.0) -> nn.Module:
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        return BertForSequenceClassification(config)

    return make


@pytest.fixture
def sentences() -> list[dict[str, Tensor]]:
    """Rows of random words; the label says whether the first is of the upper half."""
    words = torch.randint(0, WORDS, (48, LENGTH), generator=torch.Generator().manual_seed(5))
    return [{"input_ids": row, "labels": (row[0] >= WORDS // 2).long()} for row in words]


@pytest.fixture
def make_trainer(tmp_path: Path, sentences: list[dict[str, Tensor]]) -> Callable[..., Any]:
    """Makes a Trainer over a student with an optimizer class of its own, or Trainer's AdamW."""

    def make(student: nn.Module, optimizer: Any = None, **options: Any) -> Any:
        from transformers import Trainer, TrainingArguments, default_data_collator

        class Recording(Trainer):
            """Keeps the batches that it trained on, in order."""

            batches: list[dict[str, Any]]

            def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
                self.batches.append(dict(inputs))
                return super().training_step(model, inputs, *rest, **named)

        kept = {k: options.pop(k) for k in ("callbacks", "compute_metrics") if k in options}
        defaults: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
        }
        trainer = Recording(
            student,
            TrainingArguments(**(defaults | options)),
            train_dataset=sentences,
            eval_dataset=sentences[:8],
            data_collator=default_data_collator,
            optimizer_cls_and_kwargs=optimizer,
            **kept,
        )
        trainer.batches = []
        return trainer

    return make


class Spy:
    """An optimizer's steps: the closures it was given and the rates its cores were stepped with."""

    def __init__(self, opt: Any) -> None:
        """Watch from now on."""
        self.rates: list[float] = []
        self.closures: list[Any] = []
        self.norms: list[float] = []
        opt.register_step_pre_hook(self._before)
        opt.inner.register_step_pre_hook(self._inside)

    def _before(self, opt: Any, args: Any, kwargs: Any) -> None:
        # torch gives the hook the arguments of `step` with its self.
        self.closures.append(kwargs.get("closure", args[1] if len(args) > 1 else None))
        grads = [p.grad for group in opt.param_groups for p in group["params"]]
        kept = [grad.double().norm() for grad in grads if grad is not None]
        self.norms.append(float(torch.stack(kept).norm()) if kept else 0.0)

    def _inside(self, inner: Any, _args: Any, _kwargs: Any) -> None:
        self.rates.append(float(inner.param_groups[0]["lr"]))


@pytest.fixture
def spy() -> type[Spy]:
    return Spy
