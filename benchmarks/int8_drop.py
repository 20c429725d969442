"""What int8 takes from students that trained plain, with cores, with gains and with branches.

Every method has the same start weights and the same orders of the data, seed by seed, so that drops
are compared in pairs. See exports/int8_students.py for students and regimes. Finished rows are on
the disk at once; `--resume` goes on. Times are not measured: a busy machine does no harm.

Usage: python benchmarks/int8_drop.py [--seeds N] [--models M,M] [--methods M,M] [--regimes R,R]
           [--steps N] [--json FILE] [--resume]
       python benchmarks/int8_drop.py --page docs/branches.md   (from benchmarks/results)
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from bench import options as cli
from bench.ledger import Ledger
from bench.machine import machine
from bench.reporting import Report, table
from exports.int8_drop_page import summaries, write_page
from exports.int8_students import METHODS, MODELS, REGIMES, measured, problem, reach, trained

from opdf_compile.errors import InputError
from opdf_compile.parity.runtime.registry import resolve_device

SCHEMA = "opdf-int8-drop/1"
# The regimes were chosen by looking at seeds 0 to 2 of others, and at seeds from 100 of these.
FIRST_SEED = 1
_KEY = ("seed", "regime", "model", "method")


def missing(options: argparse.Namespace, ledger: Ledger) -> Iterator[tuple[int, str, str, str]]:
    """What is still to be measured: a regime after the other, all methods of a seed together."""
    done = {tuple(row[key] for key in _KEY) for row in ledger.rows}
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    for regime, seed in itertools.product(options.regimes, seeds):
        for key in itertools.product((seed,), (regime,), options.models, options.methods):
            if key not in done:
                yield key


def row(seed: int, regime: str, model: str, method: str, steps: int) -> dict[str, Any]:
    """Train one student and measure it."""
    task = problem(model, steps)
    student = trained(task, method, regime, seed)
    key = dict(zip(_KEY, (seed, regime, model, method), strict=True))
    return {**key, **measured(task, student), "reach": round(reach(student), 2)}


def measure(options: argparse.Namespace, report: Report) -> Ledger:
    """Every row that the file does not have."""
    environment = machine(resolve_device("cpu"), vars(options))
    ledger = Ledger(SCHEMA, options.json, environment, resume=options.resume)
    if ledger.value.setdefault("steps", options.steps) != options.steps:
        cli.fail(f"{options.json} has runs of {ledger.value['steps']} steps; give --steps of it")
    left = list(missing(options, ledger))
    with report.progress("int8") as bar:
        for place, key in enumerate(left):
            bar.callback(" ".join(map(str, key)), place / len(left))
            ledger.add(row(*key, options.steps))
    return ledger


def result_table(value: dict[str, Any]) -> Any:
    """The comparisons for people."""
    heads = ("regime", "model", "method", "scale per", "float32", "drop", "beyond plain")
    made = table("int8", *heads, left=4)
    for found in summaries(value["rows"]):
        made.add_row(*found.words())
    return made


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        prog="benchmarks/int8_drop.py", description="What int8 takes from trained students."
    )
    cli.choices(made, "--models", MODELS, MODELS)
    cli.choices(made, "--methods", METHODS, METHODS)
    cli.choices(made, "--regimes", tuple(REGIMES), tuple(REGIMES))
    cli.whole(made, "--seeds", "runs of each", 12, least=2)
    cli.whole(made, "--steps", "of each training", 240)
    made.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is stdout")
    made.add_argument("--resume", action="store_true", help="keep the rows of --json and go on")
    made.add_argument("--page", metavar="FILE", help="write the tables from the results, and end")
    return made.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where a training diverged."""
    options = _options(words)
    if options.page:
        write_page(Path(options.page))
        return 0
    cli.check_json(options.json)
    torch.set_num_threads(1)
    report = Report(SCHEMA, options.json)
    try:
        ledger = measure(options, report)
    except InputError as error:
        report.show(str(error))
        return 1
    report.show(result_table(ledger.value))
    if options.json == "-":
        sys.stdout.write(ledger.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
