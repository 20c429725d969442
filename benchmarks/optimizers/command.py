"""The command line of the table of optimizers.

Usage: python benchmarks/optimizers [--only GLOB,GLOB] [--jobs N] [--seconds S]
           [--json FILE] [--page FILE] [--render] [--list]
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import signal
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from bench.options import fail
from bench.reporting import Report, environment
from zoo.runner import Limits, run

from optimizers import catalogue
from optimizers.page import page
from optimizers.report import completed, line, totals, totals_table
from optimizers.worker import work

SCHEMA = "opdf-optimizers/1"
Row = dict[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    """Try the classes, or draw their page from a JSON that is there."""
    options = _parser().parse_args(words)
    # Ended from outside, the runner still ends what it started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if options.render:
        _render(options)
        return
    installed = {
        name: version for name in catalogue.PACKAGES if (version := catalogue.version(name))
    }
    names = _chosen(options, list(installed))
    report = Report(SCHEMA, options.json)
    rows = _tried(names, options, report)
    report.show(totals_table(totals(rows)))
    about = {
        **environment(torch.device("cpu"), vars(options)),
        "packages": {name: installed.get(name) for name in catalogue.PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    report.write(about, rows, totals=totals(rows))
    if options.page:
        _render(options)


def _tried(names: Sequence[str], options: argparse.Namespace, report: Report) -> list[Row]:
    """Rows in the order of the names; a line each as they end."""
    rows: dict[str, Row] = {}
    multiprocessing.get_context("forkserver").set_forkserver_preload(["optimizers.preload"])
    limits = Limits(options.seconds, options.mib)
    with report.progress("optimizers") as bar:
        for ended in run(names, lambda name: {}, jobs=options.jobs, limits=limits, target=work):
            row = completed(ended)
            rows[row["name"]] = row
            report.show(line(row, len(rows), len(names)))
            bar.callback(row["name"], len(rows) / len(names))
    return [rows[name] for name in names]


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="benchmarks/optimizers",
        description="Optimizer classes of many packages, plain and over-parameterised.",
    )
    made.add_argument("--only", default="*", metavar="GLOB,GLOB", help="such as 'torch/*'")
    made.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    made.add_argument("--seconds", type=float, default=120.0, help="for each (default 120)")
    made.add_argument("--mib", type=float, default=4096.0, help="memory for each (default 4096)")
    made.add_argument("--json", metavar="FILE", help="write the outcomes as JSON; - is stdout")
    made.add_argument("--page", metavar="FILE", help="write the page from the outcomes")
    made.add_argument("--render", action="store_true", help="only write --page from --json")
    made.add_argument("--list", action="store_true", help="print the names that --only covers")
    return made


def _chosen(options: argparse.Namespace, packages: Sequence[str]) -> list[str]:
    """The names that are asked for."""
    for option in ("jobs", "seconds", "mib"):
        if not getattr(options, option) >= 1:
            fail(f"--{option} is {getattr(options, option)}; give a number from 1")
    target = options.json
    if target not in (None, "-") and not Path(target).parent.is_dir():
        fail(f"--json is {target}, whose folder does not exist; create it or name another")
    if options.page and target in (None, "-"):
        fail("--page needs the file that --json names; give --json FILE")
    globs = options.only.split(",")
    all_names = [offer.name for package in packages for offer in catalogue.offers(package)]
    names = [name for name in all_names if any(fnmatchcase(name, glob) for glob in globs)]
    if not names:
        fail(f"--only is {options.only!r}, which names no class; --list prints them")
    if options.list:
        print("\n".join(names))
        raise SystemExit(0)
    return names


def _load(path: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fail(f"{path} cannot be read ({error}); run the table with --json first")
    if value.get("schema") != SCHEMA:
        fail(f"{path} has the schema {value.get('schema')!r}, wanted {SCHEMA!r}; run it again")
    return value


def _render(options: argparse.Namespace) -> None:
    if not options.page or options.json in (None, "-"):
        fail("--render needs --json FILE and --page FILE; give both")
    Path(options.page).write_text(page(_load(options.json)), encoding="utf-8")
