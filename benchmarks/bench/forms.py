"""The forms of one training step, built from one student and one plan.

plain    the student itself under the optimizer
inline   cores, compose and its backward in the forward graph of every micro-batch
hoisted  opdf.Overparam: compose once per optimizer step, weight by weight
batched  the same with equal weights composed together
default  opdf.Overparam as it comes, which decides itself what is composed together

Another build's forms are made with this module, too (lap_worker.py): it uses of opdf_compile what
every build has.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

import opdf_compile as opdf
from bench.clock import Clock
from bench.students import Student

FORMS = ("plain", "inline", "hoisted", "batched")
KNOWN = (*FORMS, "default")
OPTIMIZER = torch.optim.AdamW
OPTIONS: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.01}
# What a plan is made of.
Source = opdf.Traced | nn.Module


class Lap(NamedTuple):
    """What a step took, in seconds.

    Attributes:
        seconds: All of it: its micro-batches, the optimizer's step, and the gradients cleared.
        optimizer: `optimizer.step()` alone; of a hoisted form pull, refresh and checks are in it.
    """

    seconds: float
    optimizer: float


@dataclass(frozen=True)
class Form:
    """A model and its optimizer.

    Attributes:
        name: One of `KNOWN`.
        student: Batch and loss.
        model: What runs forward and backward.
        optimizer: What steps.
    """

    name: str
    student: Student
    model: nn.Module
    optimizer: torch.optim.Optimizer = field(repr=False)

    def step(self, accumulation: int) -> None:
        """One optimizer step: so many micro-batches forward and backward, then the step."""
        self.micro_batches(accumulation)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def lap(self, accumulation: int, clock: Clock, steps: int = 1) -> Lap:
        """The mean of some steps, timed."""
        marks = []
        begin = clock.now()
        for _ in range(steps):
            self.micro_batches(accumulation)
            before = clock.mark()
            self.optimizer.step()
            marks.append((before, clock.mark()))
            self.optimizer.zero_grad()
        seconds = clock.now() - begin
        return Lap(seconds / steps, sum(clock.between(*pair) for pair in marks) / steps)

    def micro_batches(self, accumulation: int) -> None:
        """Forward and backward of so many micro-batches."""
        for _ in range(accumulation):
            (self.student.loss(self.model) / accumulation).backward()  # type: ignore[no-untyped-call]


def planned(student: Student, cores: int | None) -> tuple[opdf.Traced, opdf.Plan]:
    """Trace a student and plan it.

    Args:
        student: The student.
        cores: Cores per weight; what the student usually has if None.
    """
    traced = opdf.trace(student.model, student.args, student.kwargs)
    return traced, opdf.plan(traced, cores=student.cores if cores is None else cores)


def build(
    name: str,
    student: Student,
    source: Source,
    plan: opdf.Plan,
    options: Mapping[str, Any] = OPTIONS,
    **hoist_options: Any,
) -> Form:
    """Make one form; the student itself is left as it is.

    Args:
        name: One of `KNOWN`.
        student: The student.
        source: Its graphs, of which the inline form is made; for the others anything.
        plan: What becomes of its weights.
        options: Of the optimizer.
        **hoist_options: Of `opdf.Overparam`, for the hoisted forms.
    """
    if name == "inline":
        assert isinstance(source, opdf.Traced), "the inline form is made of graphs"
        model: nn.Module = opdf.expand(source, plan).train()
        return Form(name, student, model, OPTIMIZER(model.parameters(), **options))
    model = copy.deepcopy(student.model)
    if name == "plain":
        return Form(name, student, model, OPTIMIZER(model.parameters(), **options))
    if name != "default":
        hoist_options = {"batched": name == "batched", **hoist_options}
    optimizer = opdf.Overparam(model, OPTIMIZER, plan=plan, **hoist_options, **options)
    return Form(name, student, model, optimizer)
