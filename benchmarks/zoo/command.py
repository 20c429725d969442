"""The zoo's command line.

Usage: python benchmarks/zoo [--only GLOB,GLOB] [--jobs N] [--export half|all|none] [--shard I/N]
           [--json FILE] [--resume] [--keep] [--page FILE] [--render] [--sites FORM]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench import sweep
from bench.options import fail
from bench.reporting import Report, environment

from zoo.architectures import ARCHITECTURES, exported
from zoo.page import page
from zoo.report import line, reason_table, result_table, totals, totals_table
from zoo.runner import Limits, run
from zoo.sites_page import sites_line, sites_page
from zoo.sites_page import totals as sites_totals

SCHEMA = "opdf-zoo/1"
SITES_SCHEMA = "opdf-zoo-sites/1"
Row = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What a run of the zoo does with an architecture, and how its rows read.

    Attributes:
        schema: Of the JSON.
        way: What the journey is told beside `export`.
        line: A row in one line, with the number done and of all.
        totals: The counts over rows.
        page: The page of a JSON.
        tables: What is shown at the end.
    """

    schema: str
    way: Callable[[argparse.Namespace], dict[str, Any]]
    line: Callable[[Row, int, int], str]
    totals: Callable[[Sequence[Row]], dict[str, Any]]
    page: sweep.Page
    tables: Callable[[Sequence[Row]], Sequence[Any]]


CORES = Kind(
    SCHEMA,
    lambda options: {"cores": options.cores},
    line,
    totals,
    page,
    lambda rows: (result_table(rows), reason_table(rows), totals_table(totals(rows))),
)
SITES = Kind(
    SITES_SCHEMA,
    lambda options: {"form": options.sites},
    sites_line,
    sites_totals,
    sites_page,
    lambda rows: (),
)


def main(words: Sequence[str] | None = None) -> None:
    """Run the zoo, or draw its page from a JSON that is there."""
    options = sweep.parse(_parser(), words)
    kind = SITES if options.sites else CORES
    if options.render:
        sweep.render(options, kind.schema, kind.page)
        return
    names = _chosen(options)
    report = Report(kind.schema, options.json)
    known = _kept(options, kind, names)
    waiting = [name for name in names if name not in known]
    rows = travel_all(waiting, options, kind, report, {**_earlier(options, kind), **known})
    report.show(*kind.tables(rows))
    report.write(_environment(options), rows, totals=kind.totals(rows))
    if options.page:
        sweep.render(options, kind.schema, kind.page)


def travel_all(
    names: Sequence[str],
    options: argparse.Namespace,
    kind: Kind,
    report: Report,
    known: Mapping[str, Row],
) -> list[Row]:
    """Run the architectures, a line each as they end; the JSON is written after each."""
    rows = dict(known)
    order = list(ARCHITECTURES)
    limits = Limits(options.seconds, options.mib)
    with report.progress("zoo") as bar:
        rows_of_run = run(
            names,
            lambda name: {**kind.way(options), "export": exported(name, options.export)},
            jobs=options.jobs,
            limits=limits,
        )
        for done, row in enumerate(rows_of_run, start=1):
            rows[row["name"]] = row
            report.show(kind.line(row, done, len(names)))
            bar.callback(row["name"], done / len(names))
            ordered = sorted(rows.values(), key=lambda r: order.index(r["name"]))
            report.write(_environment(options), ordered, totals=kind.totals(ordered), partial=True)
    return sorted(rows.values(), key=lambda r: order.index(r["name"]))


def _parser() -> argparse.ArgumentParser:
    made = sweep.parser(
        "zoo",
        "Real architectures through the whole pipeline.",
        such_as="timm/*vit*",
        seconds=180.0,
        mib=6144.0,
    )
    made.add_argument("--shard", default="1/1", metavar="I/N", help="every N-th, from the I-th on")
    made.add_argument("--export", choices=("half", "all", "none"), default="half")
    made.add_argument("--cores", type=int, default=2, help="cores per weight (default 2)")
    made.add_argument("--resume", action="store_true", help="keep the rows of --json that passed")
    made.add_argument(
        "--sites",
        metavar="FORM",
        help="put branches beside convolutions, such as repvgg, in place of cores in weights",
    )
    made.add_argument("--keep", action="store_true", help="keep the rows that this run has not")
    return made


def _chosen(options: argparse.Namespace) -> list[str]:
    """The names that are asked for."""
    sweep.check(options, least={"cores": 2}, earlier=("resume", "keep"))
    names = sweep.chosen(options, ARCHITECTURES, "architecture")
    first, _, count = options.shard.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        fail(f"--shard is {options.shard!r}; give I/N with I from 1 to N")
    return names[int(first) - 1 :: int(count)]


def _kept(options: argparse.Namespace, kind: Kind, names: Sequence[str]) -> dict[str, Row]:
    """Rows of an earlier run that need no repetition."""
    if not options.resume or not Path(options.json).exists():
        return {}
    rows = sweep.load(options.json, kind.schema)["rows"]
    return {
        row["name"]: row
        for row in rows
        if row["name"] in names
        and row["status"] == "passed"
        and row["export_asked"] == exported(row["name"], options.export)
    }


def _earlier(options: argparse.Namespace, kind: Kind) -> dict[str, Row]:
    """All rows of --json, each of them until this run has another."""
    if not options.keep or not Path(options.json).exists():
        return {}
    rows = sweep.load(options.json, kind.schema)["rows"]
    return {row["name"]: row for row in rows if row["name"] in ARCHITECTURES}


def _environment(options: argparse.Namespace) -> dict[str, Any]:
    return environment(torch.device("cpu"), vars(options))
