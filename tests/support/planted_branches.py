"""A job that branches are planted to help: the answer lies in the middle of every kernel.

A signal of eight channels; the label is the mean of the first channel after a ReLU. A convolution
with nine taps, a batch norm, a ReLU and a mean have it exactly where a kernel is the identity at
its middle tap, and 100 examples are few for 576 weights, however long they are trained on. The
branches of one tap and of the identity (RepVGG) are there from the start, and make the middle tap
move faster than the eight others, which are noise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from planted_jobs import Rows, StepClock, collate, job
from torch import Tensor, nn

from opdf_compile.distill.recipe import Data, Job
from opdf_compile.planning import Plan

CHANNELS, LENGTH, TAPS = 8, 12, 9
TRAIN, VALIDATION = 100, 1200


class Taps(nn.Module):
    """The student; it reads a signal as a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(CHANNELS, CHANNELS, TAPS, padding=TAPS // 2, bias=False)
        self.norm, self.head = nn.BatchNorm1d(CHANNELS), nn.Linear(CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.norm(self.conv(x.view(-1, CHANNELS, LENGTH))).relu()
        scores: Tensor = self.head(found.mean(2))
        return scores


def student(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Taps().train()


def branches_job(seed: int, clock: StepClock, **training: Any) -> Job:
    """The job with examples of a seed; on the clock a step with branches takes twice as long."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(TRAIN + VALIDATION, CHANNELS * LENGTH, generator=generator)
    means = inputs.view(-1, CHANNELS, LENGTH)[:, 0].relu().mean(1, keepdim=True)
    labels = (means - means.mean()) / means.std()
    rows = Rows(inputs[:TRAIN], labels[:TRAIN]), Rows(inputs[TRAIN:], labels[TRAIN:])
    data = Data(*rows, Rows(inputs[:0], labels[:0]), ("x",), "labels", collate, "0", "signals")

    def optimizer(model: nn.Module, plan: Plan | None, **options: float) -> Any:
        made = torch.optim.AdamW(model.parameters(), **options)
        made.register_step_post_hook(lambda *_: clock.step(plan is not None))
        return made

    given = job("hurts", seed, clock, **training)
    section = given.recipe.optimizer.model_copy(update={"name": "AdamW"})
    return replace(
        given,
        recipe=given.recipe.model_copy(update={"optimizer": section}),
        make_student=student,
        data=data,
        example=collate([data.train[0], data.train[1]]),
        plan=lambda _model: None,
        optimizer=optimizer,
    )
