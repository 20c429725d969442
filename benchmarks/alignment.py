"""What aligning the cores to a teacher's adds to an optimizer step, in the hoisted form.

Two contenders per accumulation: `opdf.Overparam` with `alignment=` and without, on the same student
with the same plan; both run in one process, interleaved in random order, and each ratio is taken
within a round. A third contender is the alignment alone, as a second way to the same figure.

Usage: python benchmarks/alignment.py [--models bert,resnet,llama] [--accumulation 1,4] [--cores N]
           [--device cpu|cuda] [--threads N] [--rounds N | --budget SECONDS] [--clock wall|cpu]
           [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from bench import options as cli
from bench import students
from bench.clock import Clock
from bench.forms import OPTIMIZER, OPTIONS, Form, planned
from bench.intervals import median_interval, paired
from bench.race import Progress, Times, race
from bench.reporting import Report, environment, finite, number, row, span, table

import opdf_compile as opdf

SCHEMA = "opdf-alignment/1"
# An aligned step is wanted within this factor of the same step without alignment.
TARGET = 1.05
WITHOUT, WITH, ALONE = "hoisted", "aligned", "alignment alone"


@dataclass(frozen=True)
class Bench:
    """Everything that is timed for one model.

    Attributes:
        plan: What is over-parameterised.
        forms: Without and with alignment, warmed up.
        alignment: That of the second.
    """

    plan: opdf.Plan
    forms: tuple[Form, Form]
    alignment: opdf.CoreAlignment

    def run(self, accumulation: int, options: argparse.Namespace, progress: Progress) -> Times:
        """Race the two forms, and time the alignment by itself."""
        clock = Clock(options.device, options.clock)
        contenders: dict[str, Any] = {
            form.name: lambda f=form: f.step(accumulation) for form in self.forms
        }
        contenders[ALONE] = lambda: self.alone(clock)
        return race(
            contenders,
            clock=clock,
            rng=np.random.default_rng([options.seed, accumulation]),
            rounds=options.rounds,
            budget=options.budget,
            progress=progress,
        )

    def alone(self, clock: Clock) -> float:
        """Seconds of what alignment adds to a step, on gradients that are there already."""
        optimizer = self.forms[1].optimizer
        assert isinstance(optimizer, opdf.Overparam)
        for unit in optimizer.program.units:
            for core in unit.storage:
                core.grad = torch.zeros_like(core)
        begin = clock.now()
        self.alignment.add_gradients(optimizer.program)
        seconds = clock.now() - begin
        optimizer.zero_grad()
        return seconds


def teacher_of(student: students.Student, seed: int) -> torch.nn.Module:
    """The same network with other weights."""
    teacher = copy.deepcopy(student.model)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in teacher.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise, alpha=0.02)
    return teacher


def prepare(name: str, options: argparse.Namespace) -> Bench:
    """Build and warm up all that one model needs."""
    student = students.student(name, options.device, options.seed)
    _traced, plan = planned(student, options.cores)
    pairs = [(entry.key, entry.key) for entry in plan.entries]
    alignment = opdf.CoreAlignment(teacher_of(student, options.seed), pairs, weight=0.1)
    forms = []
    for form, given in ((WITHOUT, None), (WITH, alignment)):
        model = copy.deepcopy(student.model)
        optimizer = opdf.Overparam(model, OPTIMIZER, plan=plan, alignment=given, **OPTIONS)
        forms.append(Form(form, student, model, optimizer))
    for made in forms:
        # The second step finds the optimizer's state and the kept graphs in place.
        made.step(1)
        made.step(1)
    return Bench(plan, (forms[0], forms[1]), alignment)


def rows_of(
    model: str, accumulation: int, bench: Bench, times: Times, seed: int
) -> list[dict[str, Any]]:
    """The JSON rows of one race."""
    rng = np.random.default_rng(seed)
    found = median_interval(paired(times[WITH], times[WITHOUT]), rng)
    share = median_interval(paired(times[ALONE], times[WITHOUT]), rng)
    compared = sum(t.numel() for kept in bench.alignment.targets.values() for t in kept.values())
    return [
        row(
            model,
            WITH,
            accumulation=accumulation,
            cores=max(len(entry.core_names) for entry in bench.plan.entries),
            ratio=found.ratio,
            low=finite(found.low),
            high=finite(found.high),
            share_alone=share.ratio,
            share_low=finite(share.low),
            share_high=finite(share.high),
            seconds=median(times[WITH]),
            without_seconds=median(times[WITHOUT]),
            alignment_seconds=median(times[ALONE]),
            compared_parameters=compared,
            core_parameters=bench.plan.cost.parameters,
            rounds=len(times[WITH]),
        )
    ]


def result_table(rows: Sequence[dict[str, Any]]) -> Any:
    """The rows for people."""
    columns = ("A", "cores", "seconds", "ratio", "90 %", "alone / step", "90 %", "rounds")
    made = table("Aligned step / hoisted step", "model", *columns, left=1)
    for r in rows:
        made.add_row(
            r["model"],
            str(r["accumulation"]),
            str(r["cores"]),
            number(r["seconds"]),
            number(r["ratio"]),
            span(r["ci_low"], r["ci_high"]),
            number(r["share_alone"], 4),
            span(r["share_low"], r["share_high"]),
            str(r["rounds"]),
        )
    return made


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    made = cli.parser(
        "alignment.py",
        "Time an optimizer step with alignment against the same step without.",
        models=("bert",),
        known=students.NAMES,
    )
    cli.accumulations(made, 1, 4)
    cli.add_rounds(made, budget=60.0)
    return cli.parse(made, words)


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _options(words)
    report = Report(SCHEMA, options.json)
    before = environment(options.device, vars(options))
    rows: list[dict[str, Any]] = []
    for model in options.models:
        bench = prepare(model, options)
        for accumulation in options.accumulation:
            with report.progress(f"{model}, accumulation {accumulation}") as bar:
                times = bench.run(accumulation, options, bar.callback)
            rows += rows_of(model, accumulation, bench, times, options.seed)
            report.write(before, rows, partial=True, target=TARGET)
        del bench
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    report.show(result_table(rows), f"target: at most {TARGET:.2f}")
    report.write(before, rows, target=TARGET)


if __name__ == "__main__":
    main()
