"""Time and memory of a command from the first instruction to the exit, against another checkout.

help     opdf-compile --help
inspect  opdf-compile inspect 'timm:resnet18?num_classes=10'
verify   opdf-compile verify BUNDLE --only structure,numerics --device cpu

Every run is a process of its own. Both checkouts run with the same interpreter and libraries, one
after the other in every round and each first in half of the rounds, so that a busy machine slows
both. The ratio is the median over the rounds; memory is the largest resident size.

Usage: python benchmarks/cold_start.py [BUNDLE] [--against CHECKOUT] [--commands help,inspect]
           [--rounds N] [--clock cpu] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import options as cli
from bench.intervals import median_interval, paired
from bench.process import Cost, once
from bench.reporting import Report, environment, number, row, table

import opdf_compile as opdf

SCHEMA = "opdf-cold-start/1"
ROOT = Path(__file__).parents[1]
COMMANDS = {
    "help": ("--help",),
    "inspect": ("inspect", "timm:resnet18?num_classes=10"),
    "verify": ("verify", "{bundle}", "--only", "structure,numerics", "--device", "cpu"),
}
# Of the other checkout's time and memory, as docs/performance.md says.
TARGETS = {"verify": (0.4, 0.5)}


def race(words: Sequence[str], checkouts: Sequence[Path], rounds: int) -> list[list[Cost]]:
    """The costs of each checkout, by round; a first run of each fills the caches."""
    for checkout in checkouts:
        once(checkout, words)
    costs: list[list[Cost]] = [[] for _ in checkouts]
    for turn in range(rounds):
        order = list(range(len(checkouts)))
        for place in order[:: -1 if turn % 2 else 1]:
            costs[place].append(once(checkouts[place], words))
    return costs


def measured(name: str, costs: list[list[Cost]], clock: str) -> dict[str, Any]:
    """One row of the report."""
    medians = [
        {key: statistics.median(getattr(c, key) for c in side) for key in ("wall", "cpu", "mib")}
        for side in costs
    ]
    ours, theirs = medians[0], medians[1] if len(medians) > 1 else None
    made = row("opdf-compile", name, seconds=ours, against=theirs, memory_ratio=None, met=None)
    if theirs is None:
        return made
    sides = [[getattr(cost, clock) for cost in side] for side in costs]
    found = median_interval(paired(*sides), np.random.default_rng(0))
    made.update(ratio=found.ratio, ci_low=found.low, ci_high=found.high)
    made["memory_ratio"] = ours["mib"] / theirs["mib"]
    if name in TARGETS:
        made["met"] = found.ratio <= TARGETS[name][0] and made["memory_ratio"] <= TARGETS[name][1]
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = parser().parse_args(words)
    cli.check_json(options.json)
    checkouts = [ROOT] + ([options.against.resolve()] if options.against else [])
    for path in checkouts:
        if not (path / "opdf_compile").is_dir():
            cli.fail(f"--against is {path}, which holds no opdf_compile; give a checkout")
    report = Report(SCHEMA, options.json)
    shown = {key: value for key, value in vars(options).items() if key not in _PATHS}
    facts = environment(torch.device("cpu"), shown)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or small_bundle(Path(folder) / "bundle")
        for name in options.commands:
            line = [word.format(bundle=bundle.resolve()) for word in COMMANDS[name]]
            rows.append(measured(name, race(line, checkouts, options.rounds), options.clock))
            report.write(facts, rows, partial=True)
    report.show(_table(rows))
    report.write(facts, rows)


def small_bundle(folder: Path) -> Path:
    """The bundle of a student of one layer."""
    student = torch.nn.Linear(4, 2)
    opdf.export_onnx(student, (torch.randn(3, 4),), folder, reference=student)
    return folder


# Where things lie says nothing about the figures.
_PATHS = ("bundle", "against", "json")


def parser() -> argparse.ArgumentParser:
    """The options; a model, cores and a device have no meaning here."""
    made = argparse.ArgumentParser(prog="benchmarks/cold_start.py", description="cold start")
    what = "a bundle that both checkouts can read (that of a small student)"
    made.add_argument("bundle", type=Path, nargs="?", help=what)
    made.add_argument("--against", type=Path, metavar="CHECKOUT", help="the one to compare with")
    cli.choices(made, "--commands", tuple(COMMANDS), tuple(COMMANDS))
    cli.whole(made, "--rounds", "runs of each checkout", 7, least=2)
    made.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="of the ratio")
    made.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is stdout")
    return made


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    head = ("command", "s", "cpu s", "MiB", "other s", "cpu s", "MiB", "ratio", "memory", "met")
    made = table("Cold start", *head, left=1)
    for found in rows:
        sides = [found["seconds"], found["against"] or {}]
        cells = [number(side.get(key)) for side in sides for key in ("wall", "cpu", "mib")]
        met = {None: "-", True: "yes", False: "no"}[found["met"]]
        ratios = (number(found["ratio"]), number(found["memory_ratio"]))
        made.add_row(found["form"], *cells, *ratios, met)
    return made


if __name__ == "__main__":
    main()
