"""The command line of the table of optimizers.

Usage: python benchmarks/optimizers [--only GLOB,GLOB] [--jobs N] [--seconds S]
           [--json FILE] [--page FILE] [--render] [--list]
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from bench import sweep
from bench.facts import date_of_today
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
    options = sweep.parse(_parser(), words)
    if options.render:
        sweep.render(options, SCHEMA, page)
        return
    installed = {
        name: version for name in catalogue.PACKAGES if (version := catalogue.version(name))
    }
    names = _chosen(options, installed)
    report = Report(SCHEMA, options.json)
    rows = _tried(names, options, report)
    report.show(totals_table(totals(rows)))
    about = {
        **environment(torch.device("cpu"), vars(options)),
        "packages": {name: installed.get(name) for name in catalogue.PACKAGES},
        "date": date_of_today(),
    }
    report.write(about, rows, totals=totals(rows))
    if options.page:
        sweep.render(options, SCHEMA, page)


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
    return sweep.parser(
        "optimizers",
        "Optimizer classes of many packages, plain and over-parameterised.",
        such_as="torch/*",
        seconds=120.0,
        mib=4096.0,
    )


def _chosen(options: argparse.Namespace, packages: Iterable[str]) -> list[str]:
    """The names that are asked for."""
    sweep.check(options)
    names = (offer.name for package in packages for offer in catalogue.offers(package))
    return sweep.chosen(options, names, "class")
