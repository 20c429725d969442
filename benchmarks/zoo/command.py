"""The zoo's command line.

Usage: python benchmarks/zoo [--only GLOB,GLOB] [--jobs N] [--export half|all|none] [--shard I/N]
           [--json FILE] [--resume] [--keep] [--page FILE] [--render]
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bench.options import fail
from bench.reporting import Report, environment

from zoo.architectures import ARCHITECTURES, exported, named
from zoo.page import page
from zoo.report import line, reason_table, result_table, totals, totals_table
from zoo.runner import Limits, run

SCHEMA = "opdf-zoo/1"
Row = dict[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    """Run the zoo, or draw its page from a JSON that is there."""
    options = _parser().parse_args(words)
    # Ended from outside, the runner still ends what it started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if options.render:
        _render(options)
        return
    names = _chosen(options)
    report = Report(SCHEMA, options.json)
    known = _kept(options, names)
    waiting = [name for name in names if name not in known]
    rows = travel_all(waiting, options, report, {**_earlier(options), **known})
    report.show(result_table(rows), reason_table(rows), totals_table(totals(rows)))
    report.write(_environment(options), rows, totals=totals(rows))
    if options.page:
        _render(options)


def travel_all(
    names: Sequence[str], options: argparse.Namespace, report: Report, known: Mapping[str, Row]
) -> list[Row]:
    """Run the architectures, a line each as they end; the JSON is written after each."""
    rows = dict(known)
    order = list(ARCHITECTURES)
    limits = Limits(options.seconds, options.mib)
    with report.progress("zoo") as bar:
        rows_of_run = run(
            names,
            lambda name: {"cores": options.cores, "export": exported(name, options.export)},
            jobs=options.jobs,
            limits=limits,
        )
        for done, row in enumerate(rows_of_run, start=1):
            rows[row["name"]] = row
            report.show(line(row, done, len(names)))
            bar.callback(row["name"], done / len(names))
            ordered = sorted(rows.values(), key=lambda r: order.index(r["name"]))
            report.write(_environment(options), ordered, totals=totals(ordered), partial=True)
    return sorted(rows.values(), key=lambda r: order.index(r["name"]))


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="benchmarks/zoo", description="Real architectures through the whole pipeline."
    )
    made.add_argument("--only", default="*", metavar="GLOB,GLOB", help="such as 'timm/*vit*'")
    made.add_argument("--shard", default="1/1", metavar="I/N", help="every N-th, from the I-th on")
    made.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    made.add_argument("--export", choices=("half", "all", "none"), default="half")
    made.add_argument("--cores", type=int, default=2, help="cores per weight (default 2)")
    made.add_argument("--seconds", type=float, default=180.0, help="for each (default 180)")
    made.add_argument("--mib", type=float, default=6144.0, help="memory for each (default 6144)")
    made.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is stdout")
    made.add_argument("--resume", action="store_true", help="keep the rows of --json that passed")
    made.add_argument("--keep", action="store_true", help="keep the rows that this run has not")
    made.add_argument("--page", metavar="FILE", help="write the page from the figures")
    made.add_argument("--render", action="store_true", help="only write --page from --json")
    made.add_argument("--list", action="store_true", help="print the names that --only covers")
    return made


def _chosen(options: argparse.Namespace) -> tuple[str, ...]:
    """The names that are asked for."""
    for option, least in (("jobs", 1), ("cores", 2), ("seconds", 1), ("mib", 1)):
        if not getattr(options, option) >= least:
            fail(f"--{option} is {getattr(options, option)}; give a number from {least}")
    target = options.json
    if target not in (None, "-") and not Path(target).parent.is_dir():
        fail(f"--json is {target}, whose folder does not exist; create it or name another")
    if (options.resume or options.keep or options.page) and target in (None, "-"):
        fail("--resume, --keep and --page need the file that --json names; give --json FILE")
    names = named(options.only)
    if not names:
        fail(f"--only is {options.only!r}, which names no architecture; --list prints them")
    if options.list:
        print("\n".join(names))
        raise SystemExit(0)
    first, _, count = options.shard.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        fail(f"--shard is {options.shard!r}; give I/N with I from 1 to N")
    return names[int(first) - 1 :: int(count)]


def _kept(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Row]:
    """Rows of an earlier run that need no repetition."""
    if not options.resume or not Path(options.json).exists():
        return {}
    rows = _load(options.json)["rows"]
    return {
        row["name"]: row
        for row in rows
        if row["name"] in names
        and row["status"] == "passed"
        and row["export_asked"] == exported(row["name"], options.export)
    }


def _earlier(options: argparse.Namespace) -> dict[str, Row]:
    """All rows of --json, each of them until this run has another."""
    if not options.keep or not Path(options.json).exists():
        return {}
    return {r["name"]: r for r in _load(options.json)["rows"] if r["name"] in ARCHITECTURES}


def _load(path: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fail(f"{path} cannot be read ({error}); run the zoo with --json first")
    if value.get("schema") != SCHEMA:
        fail(f"{path} has the schema {value.get('schema')!r}, wanted {SCHEMA!r}; run the zoo again")
    return value


def _render(options: argparse.Namespace) -> None:
    if not options.page or options.json in (None, "-"):
        fail("--render needs --json FILE and --page FILE; give both")
    Path(options.page).write_text(page(_load(options.json)), encoding="utf-8")


def _environment(options: argparse.Namespace) -> dict[str, Any]:
    return environment(torch.device("cpu"), vars(options))
