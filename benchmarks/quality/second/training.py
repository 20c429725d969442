"""One run: a student trained by the package, folded, and scored."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import opdf_compile as opdf
from opdf_compile.distill.recipe.muon_adamw import MuonAdamW
from quality.fleet import schedule
from quality.second.methods import BY_NAME, Method
from quality.second.problem import BATCH, MOST_LOSS, Problem
from quality.second.search import Trial
from quality.second.textual import TextProblem

AnyProblem = Problem | TextProblem
_OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "muon": (MuonAdamW, {}),
}
# Runs of seeds from here on are those that count: they alone read the test part.
FIRST_FRESH_SEED = 1000


@dataclass(frozen=True)
class Run:
    """One training; its length stands for the regime, so that regimes share what they can.

    Attributes:
        task: Name of the task.
        student: Name of the student.
        loss: "labels" or "distil".
        method: Name of the method.
        steps: Optimizer steps.
        trial: Optimizer, rate, decay.
        seed: Of the start and of the order of the data.
    """

    task: str
    student: str
    loss: str
    method: str
    steps: int
    trial: Trial
    seed: int

    def key(self) -> dict[str, Any]:
        """As JSON values."""
        own = {name: getattr(self, name) for name in ("task", "student", "loss", "method", "steps")}
        trial = {name: getattr(self.trial, name) for name in ("optimizer", "rate", "decay")}
        return {**own, **trial, "seed": self.seed}


def train(problem: AnyProblem, run: Run) -> dict[str, Any]:
    """Train, fold, score.

    Returns:
        "validation" and, of fresh seeds, "test": accuracy and cross-entropy each; "seconds" of
        processor time. A run that diverged has accuracy 0.
    """
    started = time.process_time()
    method = BY_NAME[run.method]
    model, optimizer = begun(problem, method, run.trial, run.steps, run.seed)
    orders = batches(problem.count, run.seed)
    peak = run.trial.learning_rate(method.centres)
    finite = True
    model.train()
    for step in range(run.steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * schedule(step, run.steps)
        loss = problem.loss(model, next(orders), run.loss)
        finite = math.isfinite(loss.item())
        if not finite:
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    finite = finite and all(bool(p.isfinite().all()) for p in model.state_dict().values())
    student = opdf.fold(model) if method.branches and finite else model
    parts = ("validation", "test") if run.seed >= FIRST_FRESH_SEED else ("validation",)
    found: dict[str, Any] = {
        part: problem.scores(student, part) if finite else (0.0, MOST_LOSS) for part in parts
    }
    return {**found, "seconds": round(time.process_time() - started, 3)}


def begun(
    problem: AnyProblem, method: Method, trial: Trial, steps: int, seed: int
) -> tuple[nn.Module, Optimizer]:
    """What is trained, and its optimizer."""
    student = problem.begun(seed)
    kind, options = _OPTIMIZERS[trial.optimizer]
    options = {
        **options,
        "lr": trial.learning_rate(method.centres),
        "weight_decay": trial.weight_decay(method.centres, steps),
    }
    if not method.asks:
        return student, kind(student.parameters(), **options)
    if method.branches:
        # The branches' own weights are part of the start.
        asks = f"{method.asks.removesuffix(')')},seed={seed})"
        model = opdf.branch(student, opdf.plan(problem.traced, parametrization=asks))
        return model, kind(model.parameters(), **options)
    plan = opdf.plan(problem.traced, parametrization=method.asks)
    return student, opdf.Overparam(student, kind, plan=plan, **options)


def batches(count: int, seed: int) -> Iterator[Tensor]:
    """Rows of batch after batch, pass after pass in an order of its own, without end."""
    generator = torch.Generator().manual_seed(seed)
    size = min(BATCH, count)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from (rows for rows in torch.split(order, size) if len(rows) == size)
