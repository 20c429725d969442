"""What an optimizer step costs with each method, against the plain step of the same student.

methods   gains, md, hyperball, ham, repopt in `opdf.Overparam`; repvgg and mobileone as modules
blocks    a stack of Conv-BN-ReLU: branches that `opdf.branch` adds, and those that `opdf.expand`
          writes into the graph, against modules written by hand with the same layers

All contenders of a student run in one process, interleaved in random order; each row gives the
ratio to the plain step, or to the modules by hand, with its 90 % interval.

Usage: python benchmarks/methods_step.py [--models bert,resnet,mobilenet,blocks] [--device cpu|cuda]
           [--methods gains,md,..] [--threads N] [--rounds N | --budget SECONDS] [--clock wall|cpu]
           [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from bench import options as cli
from bench import students
from bench.blocks import stack
from bench.clock import Clock
from bench.forms import OPTIMIZER, OPTIONS
from bench.intervals import median_interval, paired
from bench.race import Progress, Times, race
from bench.reporting import Report, environment, finite, number, row, span, table
from torch import nn

import opdf_compile as opdf
from opdf_compile.errors import OpdfError

SCHEMA = "opdf-methods-step/1"
METRICS = ("gains", "md", "hyperball", "ham", "repopt")
BRANCHES = ("repvgg", "mobileone")
METHODS = (*METRICS, *BRANCHES)
MODELS = ("bert", "resnet", "mobilenet", "blocks")
# Of a method that makes no product; of branches, against the same layers by hand.
TARGET, BRANCH_TARGET = 1.05, 1.10
_WIDTHS = (32, 32, 64, 64, 128, 128)
_COPIES = {"repvgg": 1, "mobileone": 4}

Step = Callable[[], None]


def contenders(
    model: str, options: argparse.Namespace
) -> tuple[dict[str, Step], dict[str, str], dict[str, str]]:
    """Steps by name, the baseline of each, and why some methods have none."""
    if model == "blocks":
        return _blocks(options)
    student = students.student(model, options.device, options.seed)
    steps = {"plain": _step(student, copy.deepcopy(student.model))}
    base: dict[str, str] = {}
    refused: dict[str, str] = {}
    traced = opdf.trace(student.model, student.args, student.kwargs)
    for method in options.methods:
        try:
            plan = opdf.plan(traced, parametrization=method)
            steps[method] = _method(student, plan)
        except OpdfError as error:
            refused[method] = str(error)
            continue
        base[method] = "plain"
    return steps, base, refused


def _method(student: students.Student, plan: opdf.Plan) -> Step:
    if plan.sites:
        return _step(student, opdf.branch(student.model, plan))
    model = copy.deepcopy(student.model)
    held = plan.made_for(model)
    options: dict[str, Any] = {**OPTIONS, "weight_decay": 0.0}
    return _step(student, model, opdf.Overparam(model, OPTIMIZER, plan=held, **options))


def _step(
    student: students.Student, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Step:
    model.train()
    options: dict[str, Any] = {**OPTIONS, "weight_decay": 0.0}
    inner = optimizer or OPTIMIZER(model.parameters(), **options)

    def step() -> None:
        student.loss(model).backward()  # type: ignore[no-untyped-call]
        inner.step()
        inner.zero_grad()

    return step


def _blocks(
    options: argparse.Namespace,
) -> tuple[dict[str, Step], dict[str, str], dict[str, str]]:
    """Added branches and branches by hand, of one stack."""
    torch.manual_seed(options.seed)
    plain = stack(_WIDTHS).to(options.device)
    inputs = torch.randn(32, 3, 32, 32, device=options.device)
    target = torch.randn(32, 10, device=options.device)
    student = students.Student("blocks", plain, (inputs,), {}, 0, target)
    traced = opdf.trace(plain, (inputs,))
    steps = {"plain": _step(student, copy.deepcopy(plain))}
    base: dict[str, str] = {}
    for method in BRANCHES:
        by_hand = f"{method}, by hand"
        steps[by_hand] = _step(student, stack(_WIDTHS, _COPIES[method]).to(options.device))
        base[by_hand] = "plain"
        # Every convolution, also the small first one, as by hand.
        plan = opdf.plan(traced, parametrization=method, min_size=1)
        steps[f"{method}, modules"] = _step(student, opdf.branch(plain, plan))
        steps[f"{method}, inline"] = _step(student, opdf.expand(traced, plan))
        base |= {f"{method}, modules": by_hand, f"{method}, inline": by_hand}
    return steps, base, {}


def timed(steps: Mapping[str, Step], options: argparse.Namespace, progress: Progress) -> Times:
    """Race the steps, each warmed up by two of its own."""
    for step in steps.values():
        step()
        step()
    return race(
        steps,
        clock=Clock(options.device, options.clock),
        rng=np.random.default_rng(options.seed),
        rounds=options.rounds,
        budget=options.budget,
        progress=progress,
    )


def rows_of(model: str, times: Times, base: Mapping[str, str], seed: int) -> list[dict[str, Any]]:
    """The JSON rows of one race."""
    rng = np.random.default_rng(seed)
    made = []
    for name, against in base.items():
        found = median_interval(paired(times[name], times[against]), rng)
        made.append(
            row(
                model,
                name,
                against=against,
                ratio=found.ratio,
                low=finite(found.low),
                high=finite(found.high),
                seconds=median(times[name]),
                rounds=len(times[name]),
            )
        )
    return made


def result_table(rows: Sequence[dict[str, Any]]) -> Any:
    """The rows for people."""
    made = table(
        "Optimizer step", "model", "method", "against", "seconds", "ratio", "90 %", "rounds"
    )
    for r in rows:
        made.add_row(
            r["model"],
            r["form"],
            r["against"],
            number(r["seconds"]),
            number(r["ratio"]),
            span(r["ci_low"], r["ci_high"]),
            str(r["rounds"]),
        )
    return made


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    made = cli.parser(
        "methods_step.py",
        "Time an optimizer step with each method against the plain step.",
        models=MODELS,
        known=(*students.NAMES, "blocks"),
    )
    cli.choices(made, "--methods", METHODS, METHODS)
    cli.add_rounds(made, budget=60.0)
    return cli.parse(made, words)


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _options(words)
    report = Report(SCHEMA, options.json)
    before = environment(options.device, vars(options))
    rows: list[dict[str, Any]] = []
    refused: dict[str, dict[str, str]] = {}
    targets = {"metric": TARGET, "branches": BRANCH_TARGET}
    for model in options.models:
        steps, base, refused[model] = contenders(model, options)
        with report.progress(model) as bar:
            times = timed(steps, options, bar.callback)
        rows += rows_of(model, times, base, options.seed)
        report.write(before, rows, partial=True, targets=targets, refused=refused)
    report.show(result_table(rows))
    report.write(before, rows, targets=targets, refused=refused)


if __name__ == "__main__":
    main()
