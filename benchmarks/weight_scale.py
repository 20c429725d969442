"""What over-parameterisation adds to a training step, against the number of weights.

The students are 10 to 1,000 residual Linear layers of width 64, batch 16, with three cores for each
weight: products so small that what counts is the price of handling a weight at all.

added = step of a form - plain step, within a round;  added / N is the price of a weight

The slope is the exponent s of added = c N^s over all sizes, whose target is 1.05. `end` is that of
the two largest alone, which what a step costs whatever it holds does not flatten.

Steps of all sizes and forms run in one race, in random order, so that a machine that slows down
meets small and large alike; with `--against` those of another build do, too. Each size of each
build has a process of its own, as a student of somebody's has, and one runs at a time.

Usage: python benchmarks/weight_scale.py [--weights N,N,..] [--forms hoisted,batched,default]
           [--cores N] [--fused] [--against CHECKOUT [--against-python PYTHON]] [--threads N]
           [--rounds N | --budget SECONDS] [--clock wall|cpu] [--json FILE] [--plot FILE.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench import builds
from bench import options as cli
from bench.forms import KNOWN
from bench.growth import exponent, plot
from bench.intervals import median_interval, paired
from bench.laps import Setting
from bench.race import Times, race
from bench.reporting import Report, environment, finite, number, row, span, table
from bench.students import stack_of

SCHEMA = "opdf-weight-scale/1"
WEIGHTS = (10, 30, 100, 300, 1000)
FORMS = ("hoisted", "batched", "default")
TARGET = 1.05
# Where things lie says nothing about the figures.
_PATHS = ("against", "against_python", "plot")
THIS, OTHER = "this", "other"

# Steps by build and number of weights.
Contenders = Mapping[tuple[str, int], builds.Worker]


@contextmanager
def prepared(options: argparse.Namespace, other: builds.Build | None) -> Iterator[Contenders]:
    """The steps of every size, built and warmed up; `other` is the build to race against."""
    sides = {THIS: builds.THIS} | ({OTHER: other} if other else {})
    with ExitStack() as stack:
        yield {
            (name, weights): stack.enter_context(builds.worker(side, _setting(weights, options)))
            for weights in options.weights
            for name, side in sides.items()
        }


def _setting(weights: int, options: argparse.Namespace) -> Setting:
    return Setting(
        stack_of(weights),
        ("plain", *options.forms),
        cores=options.cores,
        traced="inline" in options.forms,
        fused=options.fused,
        seed=options.seed,
        device=options.device.type,
        clock=options.clock,
        threads=options.threads,
    )


def contender(build: str, weights: int, form: str) -> str:
    """What the race calls a step."""
    return f"{build} build, {weights} weights, {form}"


def contenders(laps: Contenders, forms: Sequence[str]) -> dict[str, Callable[[], float]]:
    """Every step of the race."""

    def timed(of: builds.Worker, form: str) -> Callable[[], float]:
        return lambda: of.lap(form, 1).seconds

    return {
        contender(build, weights, form): timed(of, form)
        for (build, weights), of in laps.items()
        for form in ("plain", *forms)
    }


def rows_of(
    build: str, form: str, sizes: Sequence[int], times: Times, seed: int
) -> list[dict[str, Any]]:
    """The JSON rows of a form of a build, by size."""
    rng = np.random.default_rng(seed)
    made = []
    for weights in sizes:
        mine, plain = (times[contender(build, weights, which)] for which in (form, "plain"))
        found = median_interval(paired(mine, plain), rng)
        added = [whole - own for whole, own in zip(mine, plain, strict=True)]
        low, middle, high = (float(q) for q in np.quantile(added, (0.25, 0.5, 0.75)))
        made.append(
            row(
                stack_of(weights),
                form,
                accumulation=1,
                ratio=found.ratio,
                low=finite(found.low),
                high=finite(found.high),
                build=build,
                weights=weights,
                plain_seconds=median(plain),
                seconds=median(mine),
                added_seconds=middle,
                added_quartiles=[low, high],
                micros_per_weight=middle / weights * 1e6,
                rounds=len(mine),
            )
        )
    return made


def slope(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How what a form adds grows with the weights; of a form that adds nothing, None."""
    sizes, added = [r["weights"] for r in rows], [r["added_seconds"] for r in rows]
    if len(sizes) < 2 or min(added) <= 0:
        return {"slope": None, "end": None, "met": None}
    whole = exponent(sizes, added)
    return {"slope": whole, "end": exponent(sizes[-2:], added[-2:]), "met": whole <= TARGET}


def curves(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is drawn of each build: its plain step, and what each form adds to it."""
    drawn: dict[str, Any] = {}
    for build in dict.fromkeys(r["build"] for r in rows):
        of = [r for r in rows if r["build"] == build]
        sizes = sorted({r["weights"] for r in of})
        plain = {r["weights"]: r["plain_seconds"] for r in of}
        seconds = {"plain step": [plain[size] for size in sizes]}
        for form in dict.fromkeys(r["form"] for r in of):
            # A logarithm has no place for a step that costs nothing.
            added = [max(r["added_seconds"], 1e-7) for r in of if r["form"] == form]
            seconds[f"{form} adds"] = added
        slopes = {name: exponent(sizes, times) for name, times in seconds.items()}
        drawn[f"{build} build"] = (sizes, seconds, slopes)
    return drawn


def result_table(rows: Sequence[dict[str, Any]], slopes: Sequence[dict[str, Any]]) -> Any:
    """The rows for people, each form's slope below its own."""
    columns = ("weights", "plain ms", "ms", "ratio", "90 %", "added ms", "us / weight", "rounds")
    made = table("Step of a form - plain step", "build", "form", *columns)
    for s in slopes:
        for r in (r for r in rows if (r["build"], r["form"]) == (s["build"], s["form"])):
            made.add_row(
                r["build"],
                r["form"],
                str(r["weights"]),
                number(r["plain_seconds"] * 1e3, 2),
                number(r["seconds"] * 1e3, 2),
                number(r["ratio"], 2),
                span(r["ci_low"], r["ci_high"]),
                number(r["added_seconds"] * 1e3),
                number(r["micros_per_weight"], 1),
                str(r["rounds"]),
            )
        said = f"{number(s['slope'])}, end {number(s['end'])}"
        made.add_row(s["build"], s["form"], "slope", said, end_section=True)
    return made


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    made = cli.parser("weight_scale.py", "Time what a step pays against the number of weights.")
    cli.numbers(made, "--weights", "Linear layers of each student", *WEIGHTS)
    cli.choices(made, "--forms", [form for form in KNOWN if form != "plain"], FORMS)
    cli.add_rounds(made, budget=300.0)
    made.add_argument("--fused", action="store_true", help="AdamW(fused=True) in every form")
    cli.add_builds(made)
    made.add_argument("--plot", type=Path, metavar="FILE.png", help="draw weights against seconds")
    options = cli.parse(made, words)
    options.weights = tuple(sorted(options.weights))
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _options(words)
    other = options.against and builds.other(options.against, options.against_python)
    report = Report(SCHEMA, options.json)
    shown = {key: value for key, value in vars(options).items() if key not in _PATHS}
    before = environment(options.device, shown)
    with prepared(options, other) as laps, report.progress("weights") as bar:
        facts = [{"build": build, **of.facts} for (build, _), of in laps.items()]
        times = race(
            contenders(laps, options.forms),
            clock=_setting(options.weights[0], options).timer,
            rng=np.random.default_rng(options.seed),
            rounds=options.rounds,
            budget=options.budget,
            progress=bar.callback,
        )
    rows: list[dict[str, Any]] = []
    slopes: list[dict[str, Any]] = []
    for build in dict.fromkeys(build for build, _ in laps):
        for form in options.forms:
            mine = rows_of(build, form, options.weights, times, options.seed)
            rows += mine
            slopes.append({"build": build, "form": form, **slope(mine)})
    report.show(result_table(rows, slopes), f"target: a slope of {TARGET:.2f} at most")
    report.write(before, rows, target=TARGET, slopes=slopes, builds=facts)
    if options.plot is not None and len(options.weights) > 1:
        kind = "processor seconds" if options.clock == "cpu" else "seconds"
        plot(curves(rows), options.plot, size="weights", seconds=kind, others=1, alike=True)


if __name__ == "__main__":
    main()
