"""What an optimizer step costs with over-parameterisation, against the plain student's.

Forms: plain, inline, hoisted, batched, default (see bench/forms.py). Each row gives the ratio to
the plain step with its 90 % interval, the floor (bench/floor.py), and ratio / floor, whose target
is 1.10; and what `optimizer.step()` alone takes. All forms of a model run in one process,
interleaved in random order.

With `--against` the same forms of another build, a checkout, run in the race, too: each build in a
process of its own, of which one runs at a time. Further rows then give this build over the other.

Usage: python benchmarks/training_step.py [--models bert,resnet,llama] [--accumulation 1,4,16]
           [--forms inline,hoisted,batched] [--cores N | --default-plan] [--fused]
           [--against CHECKOUT [--against-python PYTHON]] [--device cpu|cuda] [--threads N]
           [--rounds N | --budget SECONDS] [--clock wall|cpu] [--profile] [--json FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from bench import builds, students
from bench import options as cli
from bench.floor import GemmRate, OptimizerPass, compose_products, core_shapes, weight_shapes
from bench.forms import FORMS, KNOWN, OPTIMIZER
from bench.laps import Laps, OwnLaps, Setting
from bench.race import Progress, Times, race
from bench.reporting import Report, environment
from bench.step_profile import phase_table, profile_step
from bench.step_rows import (
    COMPOSE,
    CORES,
    WEIGHTS,
    against,
    build_rows,
    build_table,
    result_table,
    rows_of,
)

import opdf_compile as opdf

SCHEMA = "opdf-training-step/1"
# Hoisted forms are wanted within this factor of the floor.
TARGET = 1.10
# Where things lie says nothing about the figures.
_PATHS = ("against", "against_python")


@dataclass(frozen=True)
class Bench:
    """Everything that is timed for one model.

    Attributes:
        setting: What it is timed with.
        plan: What is over-parameterised.
        ours: Runs the steps of this build.
        theirs: Runs those of the other build.
        floor: Measures the parts of the floor, by name.
        builds: What the processes of two builds say about themselves.
    """

    setting: Setting
    plan: opdf.Plan
    ours: Laps
    theirs: Laps | None
    floor: dict[str, Callable[[], float]]
    builds: tuple[dict[str, Any], ...] = ()

    def run(
        self, accumulation: int, options: argparse.Namespace, progress: Progress
    ) -> tuple[Times, Times]:
        """Race the forms and the parts of the floor.

        Returns:
            Seconds of each, and of the optimizer's part of each form, by round.
        """
        parts: Times = {}

        def timed(laps: Laps, form: str, name: str) -> Callable[[], float]:
            own = parts[name] = []

            def run() -> float:
                lap = laps.lap(form, accumulation)
                own.append(lap.optimizer)
                return lap.seconds

            return run

        contenders = {form: timed(self.ours, form, form) for form in self.setting.forms}
        if self.theirs is not None:
            for form in self.setting.forms:
                contenders[against(form)] = timed(self.theirs, form, against(form))
        times = race(
            contenders | self.floor,
            clock=self.setting.timer,
            rng=np.random.default_rng([options.seed, accumulation]),
            rounds=options.rounds,
            budget=options.budget,
            progress=progress,
        )
        return times, parts


@contextmanager
def prepared(setting: Setting, other: builds.Build | None) -> Iterator[Bench]:
    """All that one model needs, built and warmed up; `other` is the build to race against."""
    student, traced, plan = setting.planned()
    options, clock = setting.optimizer_options, setting.timer
    floor = {
        COMPOSE: GemmRate(compose_products(plan), clock).seconds,
        CORES: OptimizerPass(core_shapes(plan), OPTIMIZER, options, clock).seconds,
        WEIGHTS: OptimizerPass(weight_shapes(plan), OPTIMIZER, options, clock).seconds,
    }
    if other is None:
        yield Bench(setting, plan, OwnLaps(setting, student, traced, plan), None, floor)
        return
    with builds.worker(builds.THIS, setting) as ours, builds.worker(other, setting) as theirs:
        facts = (
            {"model": setting.model, "build": name, **worker.facts}
            for name, worker in (("this", ours), ("other", theirs))
        )
        yield Bench(setting, plan, ours, theirs, floor, tuple(facts))


def profiles(
    model: str, laps: OwnLaps, options: argparse.Namespace, report: Report
) -> list[dict[str, Any]]:
    """Profile the hoisted forms, and show where their time goes."""
    found = []
    for form in (form for form in laps.forms if form not in ("plain", "inline")):
        accumulation = options.accumulation[0]
        phases = profile_step(laps.forms[form], accumulation, options.device)
        title = f"{model}, {form}, accumulation {accumulation}: milliseconds per step"
        report.show(phase_table(title, phases))
        found.append(
            {
                "model": model,
                "form": form,
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
    cli.choices(made, "--forms", KNOWN, FORMS)
    cli.add_rounds(made, budget=60.0)
    made.add_argument("--fused", action="store_true", help="AdamW(fused=True) in every form")
    made.add_argument(
        "--default-plan", action="store_true", help="the plan that opdf.plan makes by itself"
    )
    made.add_argument(
        "--profile", action="store_true", help="show where a hoisted step's time goes"
    )
    cli.add_builds(made)
    options = cli.parse(made, words)
    if options.default_plan and options.cores:
        cli.fail("--cores and --default-plan are two plans; give one of them")
    if options.against and options.profile:
        cli.fail("--profile looks at this process alone; give it without --against")
    return options


def _setting(model: str, options: argparse.Namespace) -> Setting:
    return Setting(
        model,
        ("plain", *(form for form in options.forms if form != "plain")),
        cores=options.cores,
        default_plan=options.default_plan,
        fused=options.fused,
        seed=options.seed,
        device=options.device.type,
        clock=options.clock,
        threads=options.threads,
    )


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _options(words)
    other = options.against and builds.other(options.against, options.against_python)
    report = Report(SCHEMA, options.json)
    shown = {key: value for key, value in vars(options).items() if key not in _PATHS}
    before = environment(options.device, shown)
    rows: list[dict[str, Any]] = []
    more: dict[str, Any] = {"target": TARGET, "profiles": []}
    if other:
        more["against"] = {"builds": [], "rows": []}
    for model in options.models:
        with prepared(_setting(model, options), other) as bench:
            if other:
                more["against"]["builds"] += bench.builds
            for accumulation in options.accumulation:
                with report.progress(f"{model}, accumulation {accumulation}") as bar:
                    times, parts = bench.run(accumulation, options, bar.callback)
                rows += rows_of(model, accumulation, bench.plan, times, parts, options.seed)
                if other:
                    pairs = build_rows(model, accumulation, times, parts, options.seed)
                    more["against"]["rows"] += pairs
                report.write(before, rows, partial=True, **more)
            if options.profile and isinstance(bench.ours, OwnLaps):
                more["profiles"] += profiles(model, bench.ours, options, report)
        del bench
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    report.show(result_table(rows), f"target: hoisted within {TARGET:.2f} of the floor")
    if other:
        report.show(build_table(more["against"]["rows"]))
    report.write(before, rows, **more)


if __name__ == "__main__":
    main()
