"""The zoo's command line.

Usage: python benchmarks/zoo [--only GLOB,GLOB] [--jobs N] [--export half|all|none] [--shard I/N]
           [--json FILE] [--resume] [--keep] [--page FILE] [--render] [--sites FORM]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
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
from zoo.sites_page import sites_page
from zoo.sites_page import totals as sites_totals

SCHEMA = "opdf-zoo/1"
SITES_SCHEMA = "opdf-zoo-sites/1"
Row = dict[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    """Run the zoo, or draw its page from a JSON that is there."""
    options = sweep.parse(_parser(), words)
    if options.sites:
        _with_branches(options)
        return
    if options.render:
        sweep.render(options, SCHEMA, page)
        return
    names = _chosen(options)
    report = Report(SCHEMA, options.json)
    known = _kept(options, names)
    waiting = [name for name in names if name not in known]
    rows = travel_all(waiting, options, report, {**_earlier(options), **known})
    report.show(result_table(rows), reason_table(rows), totals_table(totals(rows)))
    report.write(_environment(options), rows, totals=totals(rows))
    if options.page:
        sweep.render(options, SCHEMA, page)


def _with_branches(options: argparse.Namespace) -> None:
    """The same with branches beside convolutions, or the page of it."""
    if options.render:
        sweep.render(options, SITES_SCHEMA, sites_page)
        return
    names = _chosen(options)
    report = Report(SITES_SCHEMA, options.json)
    rows: list[Row] = []
    limits = Limits(options.seconds, options.mib)
    asked = {
        name: {"form": options.sites, "export": exported(name, options.export)} for name in names
    }
    with report.progress("zoo") as bar:
        for row in run(names, asked.__getitem__, jobs=options.jobs, limits=limits):
            rows = sorted([*rows, row], key=lambda r: names.index(r["name"]))
            bar.callback(row["name"], len(rows) / len(names))
            failed = f"failed: {row['step']}: {row['reason']}"
            verdict = "passed" if row["status"] == "passed" else failed
            counts = f"{row.get('planned', '-')} of {row.get('sites', '-')} sites"
            report.show(f"[{len(rows):>3}/{len(names)}] {row['name']:<46} {counts:<18} {verdict}")
            report.write(_environment(options), rows, totals=sites_totals(rows), partial=True)
    report.write(_environment(options), rows, totals=sites_totals(rows))
    if options.page:
        sweep.render(options, SITES_SCHEMA, sites_page)


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


def _kept(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Row]:
    """Rows of an earlier run that need no repetition."""
    if not options.resume or not Path(options.json).exists():
        return {}
    rows = sweep.load(options.json, SCHEMA)["rows"]
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
    rows = sweep.load(options.json, SCHEMA)["rows"]
    return {row["name"]: row for row in rows if row["name"] in ARCHITECTURES}


def _environment(options: argparse.Namespace) -> dict[str, Any]:
    return environment(torch.device("cpu"), vars(options))
