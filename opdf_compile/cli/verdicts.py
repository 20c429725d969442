"""Verdicts on a terminal and in files: of one candidate, or of a list of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from opdf_compile.cli.formats import table

if TYPE_CHECKING:
    from rich.table import Table

    from opdf_compile.parity import ParityReport, Reports

_COLOURS = {"pass": "bold green", "fail": "bold red", "unusable": "bold red", "-": "dim"}


def verdict_table(report: ParityReport) -> Table:
    """One row per check: its verdict and the figures behind it."""
    from opdf_compile.parity import verdict_rows

    made = table("Parity", "check", "verdict", "finding")
    for name, verdict, finding in verdict_rows(report):
        made.add_row(name, coloured(verdict), finding)
    return made


def more_tables(report: ParityReport) -> list[Table]:
    """The metric, what quantisation costs, several shapes, and what decides nothing."""
    from opdf_compile.parity import cost_rows, drop_rows, metric_rows, shape_rows

    shapes = shape_rows(report.latency)
    titled = {"Metric": metric_rows(report.metric), "Quantised": drop_rows(report.numerics)}
    titled |= {"Shapes": shapes if len(shapes) > 2 else [], "Beside it": cost_rows(report)}
    made = []
    for title, (head, *cells) in ((title, rows) for title, rows in titled.items() if rows):
        made.append(table(title, *head))
        for row in cells:
            made[-1].add_row(*row)
    return made


def details(report: ParityReport) -> list[str]:
    """What differs between the graphs, and what a reader of the verdict should know."""
    notes = report.environment.get("notes", ())
    differences = (f"difference: {text}" for text in report.structure.differences)
    # A difference is a sentence, then a line for each of the two places.
    return [*(line for text in differences for line in text.splitlines()), *map(str, notes)]


def verdict_line(report: ParityReport) -> Text:
    """The last line that a person reads."""
    return Text.assemble("verdict: ", coloured(report.verdict))


def coloured(verdict: str) -> Text:
    """A verdict in its colour."""
    return Text(verdict, style=_COLOURS.get(verdict, "bold yellow"))


def summary_table(reports: Reports) -> Table:
    """One row per candidate: its verdict and those of the parts."""
    from opdf_compile.parity import report_rows

    head, *cells = report_rows(reports)
    made = table("Parity", *head)
    for name, *verdicts in cells:
        made.add_row(name, *map(coloured, verdicts))
    return made


def summary_lines(reports: Reports) -> list[str]:
    """What a reader should know of each candidate, and how many pass."""
    lines = []
    for entry in reports.entries:
        told = [] if entry.report is None else details(entry.report)
        told += [entry.error] if entry.error else []
        lines += [f"{entry.name}: {line}" for line in told]
    passed = sum(entry.exit_code == 0 for entry in reports.entries)
    return [*lines, f"{passed} of {len(reports.entries)} pass"]


def save(
    report: ParityReport, bundle: Path | None, html: Path | None, summary: Path | None
) -> None:
    """Write the report's forms; a bundle gets its own."""
    if summary:
        _summarise(summary, report.to_markdown())
    if html:
        report.save_html(html)
    if bundle:
        report.save_in_bundle(bundle)


def _summarise(path: Path, text: str) -> None:
    """Write Markdown; a summary that several steps of a CI job share is added to."""
    shared = os.environ.get("GITHUB_STEP_SUMMARY")
    if shared and path.exists() and path.resolve() == Path(shared).resolve():
        text = path.read_text(encoding="utf-8") + text
    write(path, text)


def write(path: Path, text: str) -> None:
    """Write text, whole or not at all."""
    from opdf_compile.files import atomic_write

    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
