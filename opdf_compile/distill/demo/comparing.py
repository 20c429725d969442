"""The fair comparison: plain and over-parameterised distillation of one student.

Both get the same teacher, images in the same order, start weights and number of optimizer steps.
The best learning rate is not the same for weights and for cores, so a comparison at one fixed rate
would measure the step size. Each method therefore gets the same grid of rates, and picks its rate
on the validation part; accuracies are stated on the test part, which no choice has seen.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opdf_compile.distill.demo.outcomes import (
    METHODS,
    NAMES,
    Budget,
    Curve,
    Method,
    MethodRuns,
    Outcomes,
    choose_rate,
)
from opdf_compile.distill.engine import (
    Batches,
    Evaluation,
    Machine,
    Remembered,
    Say,
    Setup,
    Teaching,
    set_up,
    take_all,
)
from opdf_compile.distill.recipe import (
    DATA_PARTS,
    Examples,
    Job,
    digits_recipe,
    load_digits,
    parse_recipe,
    prepare,
)
from opdf_compile.graph import trace
from opdf_compile.planning import plan as choose_plan

# Chains are what the fold has most to prove on, whatever the recipe asks for.
CORES = 3
# Of the time: the teacher's run against the students' sixty.
_TEACHERS_SHARE = 0.13


def race(budget: Budget, say: Say) -> Outcomes:
    """Train the teacher, then every run of both methods.

    Raises:
        UserError: scikit-learn is not installed.
    """
    say("training the teacher", 0.0)
    with _one_thread():
        return run_race(digits_job(budget), budget, say)


def digits_job(budget: Budget) -> Job:
    """The recipe of the digits, as long as the budget says; its teacher is trained here."""
    load_digits()  # What is missing is said before a line of the recipe comes into it.
    recipe = parse_recipe(digits_recipe(), name="digits.toml")
    training, teacher = recipe.training, recipe.teacher
    assert teacher is not None
    training = training.model_copy(update={"device": "cpu"})
    if budget.epochs is not None:
        training = training.model_copy(update={"epochs": budget.epochs})
    if budget.teacher_epochs is not None:
        model = f"{teacher.model}?epochs={budget.teacher_epochs}"
        teacher = teacher.model_copy(update={"model": model})
    return prepare(recipe.model_copy(update={"training": training, "teacher": teacher}))


def run_race(job: Job, budget: Budget, say: Say) -> Outcomes:
    """Every run of both methods of a job whose teacher is there."""
    racing, data = _Racing(job), job.data
    runs: list[_Run] = []
    for seed in budget.seeds:
        for rate in budget.rates:
            for method in METHODS:
                done = _TEACHERS_SHARE + (1 - _TEACHERS_SHARE) * len(runs) / budget.runs
                say(f"training: {NAMES[method]}, seed {seed}, rate {rate:g}", done)
                runs.append(racing.run(method, rate, seed))
    plain, overparam = (racing.outcome(m, [r for r in runs if r.method == m]) for m in METHODS)
    assert job.teacher is not None
    return Outcomes(
        plain=plain,
        overparam=overparam,
        plan=racing.plan,
        teacher_accuracy=racing.accuracy(job.teacher, "test"),
        sizes={part: len(getattr(data, part)) for part in DATA_PARTS},
        example=images(job, data.validation),
    )


@dataclass(frozen=True, eq=False)
class _Run:
    method: Method
    rate: float
    curve: Curve
    setup: Setup


class _Racing:
    """What all runs of a race share."""

    def __init__(self, job: Job) -> None:
        assert job.teacher is not None
        self._job, self._machine = job, Machine(torch.device("cpu"))
        self._batches = Batches(job.data, self._machine)
        traced = trace(job.make_student(0), (images(job, job.data.train),))
        self.plan = choose_plan(traced, cores=CORES)
        teaching = Teaching(job, job.teacher, self._machine)
        whole = self._batches.of(job.data.train, range(len(job.data.train)))
        kept = Remembered(teaching.outputs(job.teacher, whole))
        self._teaching = Teaching(job, job.teacher, self._machine, {"train": kept})

    def run(self, method: Method, rate: float, seed: int) -> _Run:
        """Both methods start from the same weights: as they are, or as cores that compose them."""
        started = time.perf_counter()
        student = self._job.make_student(seed)
        plan = self.plan.made_for(student) if method == "overparam" else None
        setup = set_up(self._job, self._machine, student, plan, seed=seed, lr=rate)
        losses: list[Tensor] = []
        epochs: list[tuple[float, float]] = []

        def after(step: int, loss: Tensor) -> None:
            losses.append(loss)
            if step % setup.order.steps_per_epoch == 0:
                mean = float(torch.stack(losses).mean())
                epochs.append((mean, self.accuracy(student, "validation")))
                losses.clear()

        take_all(setup, self._teaching, seed, after)
        means, accuracies = zip(*epochs, strict=True)
        curve = Curve(means, accuracies, time.perf_counter() - started)
        return _Run(method, rate, curve, setup)

    def accuracy(self, model: nn.Module, part: str) -> float:
        """The recipe's metric on a part of the digits."""
        size = len(getattr(self._job.data, part))
        evaluation = Evaluation(self._job, self._batches, self._teaching, size)
        return evaluation.of(model, part, alone=True)

    def outcome(self, method: Method, runs: Sequence[_Run]) -> MethodRuns:
        """Choose a method's rate, and look at the test part."""
        by_rate: dict[float, list[Curve]] = {}
        for run in runs:
            by_rate.setdefault(run.rate, []).append(run.curve)
        rate = choose_rate(by_rate)
        students = [run.setup.deployed().eval() for run in runs if run.rate == rate]
        return MethodRuns(
            method=method,
            validation={r: tuple(c.accuracy[-1] for c in curves) for r, curves in by_rate.items()},
            rate=rate,
            curves=tuple(by_rate[rate]),
            accuracies=tuple(self.accuracy(student, "test") for student in students),
            student=students[0],
        )


def images(job: Job, part: Examples) -> Tensor:
    """Some images of a part, as one batch of the recipe."""
    rows = range(min(job.recipe.data.batch, len(part)))
    return job.data.collate([part[row] for row in rows])[job.data.inputs[0]]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small gain nothing from two threads, and sums keep their order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
