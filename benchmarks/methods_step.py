"""What an optimizer step costs with each method, against the plain step of the same student.

methods   every one that `opdf.parametrizations` lists, as `opdf.plan` takes it by its name, and
          what it makes if it is asked for nothing (default): on weights in `opdf.Overparam`,
          beside convolutions as modules (`opdf.branch`)
blocks    a stack of Conv-BN-ReLU: branches that `opdf.branch` adds, and those that `opdf.expand`
          writes into the graph, against modules written by hand with the same layers

All contenders of a student run in one process, interleaved in random order; each row gives the
ratio to the plain step, or to the modules by hand, with its 90 % interval. `--page` puts what each
method costs on each student between the marks of a page's table.

Usage: python benchmarks/methods_step.py [--models mlp,bert,blocks,..] [--device cpu|cuda]
           [--methods gains,md,..] [--threads N] [--rounds N | --budget SECONDS] [--clock wall|cpu]
           [--json FILE] [--page FILE [--also FILE]]
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bench import markdown, students
from bench import options as cli
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
# The plan that `opdf.plan` makes if it is asked for nothing, and those of every method by name.
DEFAULT = "default"
METHODS = (DEFAULT, *(method.name for method in opdf.parametrizations()))
# So dear, up to forty plain steps, that the others would get few rounds beside it.
APART = ("wide",)
USUAL = tuple(method for method in METHODS if method not in APART)
MODELS = ("mlp", "mobilenet", "resnet32", "resnet", "vit", "bert", "blocks")
# Of these there are modules by hand.
BRANCHES = ("repvgg", "mobileone")
# Of a method that makes no product; of branches, against the same layers by hand.
TARGET, BRANCH_TARGET = 1.05, 1.10
# Where things lie says nothing about the figures.
_PATHS = ("page", "also")
_WIDTHS = (32, 32, 64, 64, 128, 128)
_COPIES = {"repvgg": 1, "mobileone": 4}

Step = Callable[[], None]


@dataclass
class Contest:
    """The steps of one student.

    Attributes:
        steps: By name.
        base: What each is held against; the plain student has none.
        planned: How many weights or sites each changes, and how many there are.
        refused: Why some methods have no step here.
    """

    steps: dict[str, Step]
    base: dict[str, str] = field(default_factory=dict)
    planned: dict[str, tuple[int, int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def contest(model: str, options: argparse.Namespace) -> Contest:
    """All that is timed of one student."""
    if model == "blocks":
        return _blocks(options)
    student = students.student(model, options.device, options.seed)
    made = Contest({"plain": _step(student, copy.deepcopy(student.model))})
    traced = opdf.trace(student.model, student.args, student.kwargs)
    for method in options.methods:
        try:
            named = {} if method == DEFAULT else {"parametrization": method}
            plan = opdf.plan(traced, **named)
            made.steps[method] = _method(student, plan)
        except OpdfError as error:
            made.refused[method] = str(error)
            continue
        made.base[method] = "plain"
        taken = len(plan.decisions)
        made.planned[method] = (taken, taken + len(plan.refusals))
    return made


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


def _blocks(options: argparse.Namespace) -> Contest:
    """Added branches and branches by hand, of one stack."""
    torch.manual_seed(options.seed)
    plain = stack(_WIDTHS).to(options.device)
    inputs = torch.randn(32, 3, 32, 32, device=options.device)
    target = torch.randn(32, 10, device=options.device)
    student = students.Student("blocks", plain, (inputs,), {}, 0, target)
    traced = opdf.trace(plain, (inputs,))
    made = Contest({"plain": _step(student, copy.deepcopy(plain))})
    for method in BRANCHES:
        by_hand = f"{method}, by hand"
        made.steps[by_hand] = _step(student, stack(_WIDTHS, _COPIES[method]).to(options.device))
        made.base[by_hand] = "plain"
        # Every convolution, also the small first one, as by hand.
        plan = opdf.plan(traced, parametrization=method, min_size=1)
        made.steps[f"{method}, modules"] = _step(student, opdf.branch(plain, plan))
        made.steps[f"{method}, inline"] = _step(student, opdf.expand(traced, plan))
        made.base |= {f"{method}, modules": by_hand, f"{method}, inline": by_hand}
    return made


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


def rows_of(model: str, times: Times, of: Contest, seed: int) -> list[dict[str, Any]]:
    """The JSON rows of one race."""
    rng = np.random.default_rng(seed)
    made = []
    for name, against in of.base.items():
        found = median_interval(paired(times[name], times[against]), rng)
        made.append(
            row(
                model,
                name,
                against=against,
                planned=of.planned.get(name),
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


def page_table(rows: Sequence[Mapping[str, Any]], refused: Mapping[str, Any]) -> str:
    """What every method costs on every student, for a page; methods with a step somewhere."""
    cells = {(r["form"], r["model"]): _cell(r) for r in rows if r["planned"]}
    models = [model for model in dict.fromkeys(r["model"] for r in rows) if model != "blocks"]
    forms = dict.fromkeys(form for form, model in cells if model in models)
    found = (
        (
            f"`{form}`",
            *(cells.get((form, m), "-" if form in refused.get(m, {}) else "") for m in models),
        )
        for form in forms
    )
    return "\n".join(markdown.table(("method", *models), found)).strip()


def _cell(of: Mapping[str, Any]) -> str:
    low, high = (number(of[end], 2) for end in ("ci_low", "ci_high"))
    taken, there = of["planned"]
    return f"{number(of['ratio'], 2)} [{low}, {high}], {taken} of {there}"


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    made = cli.parser(
        "methods_step.py",
        "Time an optimizer step with each method against the plain step.",
        models=MODELS,
        known=(*students.NAMES, "blocks"),
    )
    cli.choices(made, "--methods", METHODS, USUAL)
    cli.add_rounds(made, budget=60.0)
    made.add_argument("--page", type=Path, metavar="FILE", help="put the table of costs into it")
    made.add_argument(
        "--also", type=Path, metavar="FILE", help="an earlier run, whose rows the table has, too"
    )
    return cli.parse(made, words)


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _options(words)
    report = Report(SCHEMA, options.json)
    shown = {key: value for key, value in vars(options).items() if key not in _PATHS}
    before = environment(options.device, shown)
    rows: list[dict[str, Any]] = []
    refused: dict[str, dict[str, str]] = {}
    targets = {"methods without products": TARGET, "branches": BRANCH_TARGET}
    for model in options.models:
        made = contest(model, options)
        with report.progress(model) as bar:
            times = timed(made.steps, options, bar.callback)
        rows += rows_of(model, times, made, options.seed)
        refused[model] = made.refused
        report.write(before, rows, partial=True, targets=targets, refused=refused)
        del made
    report.show(result_table(rows))
    report.write(before, rows, targets=targets, refused=refused)
    if options.page:
        also = json.loads(options.also.read_text())["rows"] if options.also else []
        tables = {"methods": page_table([*rows, *also], refused)}
        options.page.write_text(markdown.filled(options.page.read_text(), tables))


if __name__ == "__main__":
    main()
