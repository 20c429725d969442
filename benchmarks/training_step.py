"""What an optimizer step costs with over-parameterisation, against the plain student's.

Forms: plain, inline, hoisted, batched (see bench/forms.py). Each row gives the ratio to the plain
step with its 90 % interval, the floor (bench/floor.py), and ratio / floor, whose target is 1.10.
All forms of a model run in one process, interleaved in random order.

Usage: python benchmarks/training_step.py [--models bert,resnet,llama] [--accumulation 1,4,16]
           [--forms inline,hoisted,batched] [--cores N] [--device cpu|cuda] [--threads N]
           [--rounds N | --budget SECONDS] [--clock wall|cpu] [--profile] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from bench import options as cli
from bench import students
from bench.floor import (
    GemmRate,
    OptimizerPass,
    compose_products,
    core_shapes,
    floor_ratio,
    weight_shapes,
)
from bench.forms import FORMS, OPTIMIZER, OPTIONS, Form, build, planned
from bench.intervals import median_interval, paired
from bench.race import Clock, Progress, Times, race
from bench.reporting import Report, environment, finite, number, row, span, table
from bench.step_profile import KINDS, Phase, profile_step

import opdf_compile as opdf

SCHEMA = "opdf-training-step/1"
# Hoisted forms are wanted within this factor of the floor.
TARGET = 1.10
_COMPOSE, _CORES, _WEIGHTS = "compose at GEMM rate", "pass over cores", "pass over weights"


@dataclass(frozen=True)
class Bench:
    """Everything that is timed for one model.

    Attributes:
        plan: What is over-parameterised.
        forms: The forms, warmed up, plain first.
        gemm: Measures the rate of compose's products.
        passes: Measure the optimizer on the cores' and on the weights' shapes.
    """

    plan: opdf.Plan
    forms: tuple[Form, ...]
    gemm: GemmRate
    passes: dict[str, OptimizerPass]

    def run(self, accumulation: int, options: argparse.Namespace, progress: Progress) -> Times:
        """Race the forms and the parts of the floor."""
        contenders: dict[str, Any] = {
            form.name: lambda f=form: f.step(accumulation) for form in self.forms
        }
        contenders[_COMPOSE] = self.gemm.seconds
        contenders.update({name: measured.seconds for name, measured in self.passes.items()})
        return race(
            contenders,
            clock=Clock(options.device, options.clock),
            rng=np.random.default_rng([options.seed, accumulation]),
            rounds=options.rounds,
            budget=options.budget,
            progress=progress,
        )


def prepare(name: str, options: argparse.Namespace) -> Bench:
    """Build and warm up all that one model needs."""
    student = students.student(name, options.device, options.seed)
    traced, plan = planned(student, options.cores)
    names = ("plain", *(form for form in options.forms if form != "plain"))
    settings = OPTIONS | ({"fused": True} if options.fused else {})
    forms = tuple(build(form, student, traced, plan, settings) for form in names)
    for form in forms:
        # The second step finds the optimizer's state and the kept graphs in place.
        form.step(1)
        form.step(1)
    clock = Clock(options.device, options.clock)
    return Bench(
        plan,
        forms,
        GemmRate(compose_products(plan), clock),
        {
            _CORES: OptimizerPass(core_shapes(plan), OPTIMIZER, settings, clock),
            _WEIGHTS: OptimizerPass(weight_shapes(plan), OPTIMIZER, settings, clock),
        },
    )


def floors(times: Times) -> list[float]:
    """The floor of each round."""
    return [
        floor_ratio(*seconds)
        for seconds in zip(
            times["plain"], times[_COMPOSE], times[_CORES], times[_WEIGHTS], strict=True
        )
    ]


def rows_of(
    model: str, accumulation: int, plan: opdf.Plan, times: Times, seed: int
) -> list[dict[str, Any]]:
    """The JSON rows of one race."""
    rng = np.random.default_rng(seed)
    floor = floors(times)
    bounds = median_interval(floor, rng)
    cores = max(len(entry.core_names) for entry in plan.entries)
    made = []
    for form in (form for form in FORMS if form in times):
        ratios = paired(times[form], times["plain"])
        found, over = median_interval(ratios, rng), median_interval(paired(ratios, floor), rng)
        plain = form == "plain"
        made.append(
            row(
                model,
                form,
                accumulation=accumulation,
                cores=cores,
                ratio=found.ratio,
                low=finite(found.low),
                high=finite(found.high),
                floor=1.0 if plain else bounds.ratio,
                over_floor=None if plain else over.ratio,
                over_floor_low=None if plain else finite(over.low),
                over_floor_high=None if plain else finite(over.high),
                seconds=median(times[form]),
                rounds=len(floor),
                scale=plan.scale,
                compose_gflop=plan.cost.step_flops / 1e9,
                gemm_gflops=plan.cost.step_flops / 1e9 / median(times[_COMPOSE]),
                compose_seconds=median(times[_COMPOSE]),
                cores_pass_seconds=median(times[_CORES]),
                weights_pass_seconds=median(times[_WEIGHTS]),
            )
        )
    return made


def result_table(rows: Sequence[dict[str, Any]]) -> Any:
    """The rows for people."""
    columns = ("A", "cores", "seconds", "ratio", "90 %", "floor", "over floor", "90 %", "rounds")
    made = table("Optimizer step / plain step", "model", "form", *columns)
    for r in rows:
        made.add_row(
            r["model"],
            r["form"],
            str(r["accumulation"]),
            str(r["cores"]),
            number(r["seconds"]),
            number(r["ratio"]),
            span(r["ci_low"], r["ci_high"]),
            number(r["floor"]),
            number(r["over_floor"]),
            span(r["over_floor_low"], r["over_floor_high"]),
            str(r["rounds"]),
            end_section=r["form"] == FORMS[-1],
        )
    return made


def profile_table(model: str, form: str, accumulation: int, phases: dict[str, Phase]) -> Any:
    """The phases of one form for people, in milliseconds per step."""
    title = f"{model}, {form}, accumulation {accumulation}: milliseconds per step"
    made = table(title, "phase", "total", *KINDS, left=1)
    for name, phase in phases.items():
        parts = (phase.seconds, *(phase.kinds[kind] for kind in KINDS))
        made.add_row(name, *(number(part * 1e3, 1) for part in parts))
    return made


def profiles(
    model: str, bench: Bench, options: argparse.Namespace, report: Report
) -> list[dict[str, Any]]:
    """Profile the hoisted forms, and show where their time goes."""
    found = []
    for form in (form for form in bench.forms if form.name in ("hoisted", "batched")):
        accumulation = options.accumulation[0]
        phases = profile_step(form, accumulation, options.device)
        report.show(profile_table(model, form.name, accumulation, phases))
        found.append(
            {
                "model": model,
                "form": form.name,
                "accumulation": accumulation,
                "phases": {name: {"seconds": p.seconds, **p.kinds} for name, p in phases.items()},
            }
        )
    return found


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    made = cli.parser(
        "training_step.py",
        "Time an optimizer step in each form against the plain step.",
        models=students.DEFAULT,
        known=students.NAMES,
    )
    cli.accumulations(made, 1, 4, 16)
    cli.choices(made, "--forms", FORMS, FORMS)
    cli.add_rounds(made, budget=60.0)
    made.add_argument("--fused", action="store_true", help="AdamW(fused=True) in every form")
    made.add_argument(
        "--profile", action="store_true", help="show where a hoisted step's time goes"
    )
    return cli.parse(made, words)


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _options(words)
    report = Report(SCHEMA, options.json)
    before = environment(options.device, vars(options))
    rows: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for model in options.models:
        bench = prepare(model, options)
        for accumulation in options.accumulation:
            with report.progress(f"{model}, accumulation {accumulation}") as bar:
                times = bench.run(accumulation, options, bar.callback)
            rows += rows_of(model, accumulation, bench.plan, times, options.seed)
            report.write(before, rows, partial=True, target=TARGET, profiles=found)
        if options.profile:
            found += profiles(model, bench, options, report)
        del bench
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    report.show(result_table(rows), f"target: hoisted within {TARGET:.2f} of the floor")
    report.write(before, rows, target=TARGET, profiles=found)


if __name__ == "__main__":
    main()
