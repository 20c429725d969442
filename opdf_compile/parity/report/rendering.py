"""The parity report for people: a text table, Markdown for CI summaries, HTML for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from opdf_compile.artefacts import STUDENT
from opdf_compile.parity.report.drops import drop_rows
from opdf_compile.parity.report.findings import (
    FILE_HEAD,
    Cells,
    cost_rows,
    facts,
    file_rows,
    footnotes,
    meaning,
    metric_rows,
    shape_rows,
    verdict_rows,
)
from opdf_compile.parity.report.parity_result import plain
from opdf_compile.tables import text_table

if TYPE_CHECKING:
    from opdf_compile.parity.report.parity_result import ParityResult

_HEAD = ("part", "verdict", "finding")
_COLOURS = {"pass": "#1a7f37", "fail": "#cf222e", "inconclusive": "#9a6700"}
_MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️", "not checked": "⚠️", "not asked": "➖"}
_SHOWN_DIFFERENCES = 10
_HASH_DIGITS = 12


def as_text(report: ParityResult) -> str:
    """The report as lines of a terminal."""
    title = f"{report.verdict.upper()}: {meaning(report)}"
    details = ["  - " + line.replace("\n", "\n    ") for line in _differences(report)]
    return "\n".join(
        [
            *(title, "", text_table([_HEAD, *verdict_rows(report)]), *details),
            *_text_tables(report),
            *footnotes(report),
            facts(report),
        ]
    )


def as_markdown(report: ParityResult) -> str:
    """The report as Markdown: the verdict and a table, then what a reader may open."""
    mark = _MARKS[report.verdict]
    shown = [
        (part, f"{_MARKS[verdict]} {verdict}", found)
        for part, verdict, found in verdict_rows(report)
    ]
    lines = [f"## {mark} Parity: {report.verdict}", "", f"{meaning(report).capitalize()}.", ""]
    lines += _markdown_table([_HEAD, *shown])
    lines += _markdown_differences(report)
    for made in (metric_rows(report.metric), drop_rows(report.numerics)):
        lines += ["", *_markdown_table(made)] if made else []
    shapes = shape_rows(report.latency)
    if len(shapes) > 2:
        lines += ["", *_markdown_table(shapes)]
    lines += ["", *(f"- {_cell(line)}" for line in (*footnotes(report), facts(report)))]
    more = []
    for made in (shapes if len(shapes) == 2 else [], cost_rows(report)):
        more += ["", *_markdown_table(made)] if made else []
    if report.files:
        more += ["", *_markdown_table([FILE_HEAD, *_short_files(report)])]
    lines += _folded("Speed, memory, cold start and files", more)
    return "\n".join(lines) + "\n"


def card_values(report: ParityResult) -> dict[str, object]:
    """What the head of a model card says of the verdict, as plain values."""
    runtime, device = (report.environment.get(key, {}) for key in ("runtime", "device"))
    latency = report.latency
    found = {
        "student_sha256": report.files.get(STUDENT, {}).get("sha256"),
        "verdict": report.verdict,
        "structure": report.structure.verdict,
        "numerics": report.numerics.verdict,
        "latency": latency.verdict,
        "metric": report.metric.verdict,
        "latency_ratio": _short(latency.ratio),
        "latency_interval": [_short(latency.ci_low), _short(latency.ci_high)],
        "latency_margin": latency.margin,
        "runtime": f"{runtime.get('name')} {runtime.get('version')} on {device.get('name')}",
    }
    return {key: plain(value) for key, value in found.items()}


def _short(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 4)


def as_html(report: ParityResult) -> str:
    """The report as an HTML fragment without scripts or outside resources."""
    colour = _COLOURS[report.verdict]
    title = f"<strong style='color:{colour}'>{escape(report.verdict)}</strong>"
    listed = "".join(
        f"<li style='white-space:pre-wrap'>{escape(line)}</li>" for line in _differences(report)
    )
    tables = [_html_table([_HEAD, *verdict_rows(report)])]
    tables += [
        _html_table(made)
        for made in (
            metric_rows(report.metric),
            drop_rows(report.numerics),
            shape_rows(report.latency),
            cost_rows(report),
        )
        if made
    ]
    footer = "<br>".join(escape(line) for line in (*footnotes(report), facts(report)))
    return (
        f"<div><p>{title}: {escape(meaning(report))}</p>{tables[0]}<ul>{listed}</ul>"
        f"{''.join(tables[1:])}<p><small>{footer}</small></p></div>"
    )


def _text_tables(report: ParityResult) -> list[str]:
    """One shape is told in the first table already; several have a table of their own."""
    shapes = shape_rows(report.latency)
    found = [
        metric_rows(report.metric),
        drop_rows(report.numerics),
        shapes if len(shapes) > 2 else [],
        cost_rows(report),
    ]
    return [line for made in found if made for line in ("", text_table(made), "")]


def _differences(report: ParityResult) -> list[str]:
    lines = list(report.structure.differences)
    more = len(lines) - _SHOWN_DIFFERENCES
    return lines if more <= 0 else [*lines[:_SHOWN_DIFFERENCES], f"and {more} more"]


def _markdown_differences(report: ParityResult) -> list[str]:
    """The first difference in the open, the others folded away."""
    found = _differences(report)
    if not found:
        return []
    items = [f"- {'<br>'.join(_cell(line) for line in text.splitlines())}" for text in found]
    rest = len(report.structure.differences) - 1
    title = f"{rest} more difference{'s' * (rest > 1)}"
    return ["", "### Differences", "", items[0], *_folded(title, ["", *items[1:]])]


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    """Lines that a click shows; nothing where there is nothing to show."""
    if not any(lines):
        return []
    return ["", f"<details><summary>{title}</summary>", *lines, "", "</details>"]


def _short_files(report: ParityResult) -> list[Cells]:
    return [
        (name, digest[:_HASH_DIGITS], *others) for name, digest, *others in file_rows(report.files)
    ]


def _markdown_table(made: Sequence[Cells]) -> list[str]:
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in made]
    return [lines[0], "|" + " --- |" * len(made[0]), *lines[1:]]


def _cell(value: str) -> str:
    """Text that a Markdown table or list shows as it is, also when a model's names are hostile."""
    safe = value.replace("&", "&amp;").replace("<", "&lt;")
    for sign in "\\|`*":
        safe = safe.replace(sign, f"\\{sign}")
    # A name must not become a link either.
    safe = safe.replace("](", "]\\(")
    return " ".join(safe.split())


def _html_table(made: Sequence[Cells]) -> str:
    left = "style='text-align:left'"
    head = "".join(f"<th {left}>{escape(cell)}</th>" for cell in made[0])
    body = "".join(
        "<tr>" + "".join(f"<td {left}>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in made[1:]
    )
    return f"<table><tr>{head}</tr>{body}</table>"
