"""The parity report for people: a text table, Markdown for CI summaries, HTML for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from opdf_compile.graph.rows import text_table

if TYPE_CHECKING:
    from opdf_compile.verify.latency.result import LatencyResult
    from opdf_compile.verify.report.value import NumericsPart, ParityReport, StructurePart

_MEANING = {
    "pass": "parity holds",
    "fail": "parity is refuted",
    "inconclusive": "parity is not decided",
}
_COLOURS = {"pass": "#1a7f37", "fail": "#cf222e", "inconclusive": "#9a6700"}
_SHOWN_DIFFERENCES = 10
_HASH_DIGITS = 12


def text(report: ParityReport) -> str:
    """The report as lines of a terminal."""
    table = text_table([("part", "verdict", "finding"), *rows(report)])
    title = f"{report.verdict.upper()}: {_MEANING[report.verdict]}"
    details = ["  - " + line.replace("\n", "\n    ") for line in _differences(report)]
    return "\n".join([title, "", table, *details, *_notes(report), _measured_on(report)])


def markdown(report: ParityReport) -> str:
    """The report as Markdown, with the files that it is about."""
    lines = [f"## Parity: {report.verdict}", "", f"{_MEANING[report.verdict].capitalize()}.", ""]
    lines += _markdown_table([("part", "verdict", "finding"), *rows(report)])
    differences = _differences(report)
    if differences:
        lines += ["", "### Differences", "", *(f"- {_cell(line)}" for line in differences)]
    if report.files:
        head = ("file", "sha256", "bytes", "opset", "exporter")
        lines += ["", "### Files", "", *_markdown_table([head, *_file_rows(report.files)])]
    lines += [
        "",
        *(f"- {_cell(line)}" for line in (*_notes(report), _measured_on(report))),
    ]
    return "\n".join(lines) + "\n"


def html(report: ParityReport) -> str:
    """The report as an HTML fragment without scripts or outside resources."""
    colour = _COLOURS[report.verdict]
    title = f"<strong style='color:{colour}'>{escape(report.verdict)}</strong>"
    body = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows(report)
    )
    head = "<tr><th>part</th><th>verdict</th><th style='text-align:left'>finding</th></tr>"
    listed = "".join(
        f"<li style='white-space:pre-wrap'>{escape(line)}</li>" for line in _differences(report)
    )
    footer = "<br>".join(escape(line) for line in (*_notes(report), _measured_on(report)))
    return (
        f"<div><p>{title}: {_MEANING[report.verdict]}</p><table>{head}{body}</table>"
        f"<ul>{listed}</ul><p><small>{footer}</small></p></div>"
    )


def rows(report: ParityReport) -> list[tuple[str, ...]]:
    """Cells of the table: part, verdict, finding."""
    return [
        ("structure", _words(report.structure.verdict), _structure(report.structure)),
        ("numerics", _words(report.numerics.verdict), _numerics(report.numerics)),
        ("latency", _words(report.latency.verdict), _latency(report.latency)),
    ]


def _words(verdict: str) -> str:
    return verdict.replace("_", " ")


def _structure(part: StructurePart) -> str:
    if part.verdict == "not_asked" and not part.differences:
        return "-"
    nodes = "" if part.nodes is None else f"{part.nodes:,} nodes, "
    count = len(part.differences)
    return nodes + ("same graph" if not count else f"{count} difference{'s' * (count > 1)}")


def _numerics(part: NumericsPart) -> str:
    if part.verdict == "not_asked":
        return "-"
    if part.verdict == "not_checked":
        return "no check data; export writes it beside the model, or give it with --check"
    return (
        f"error {_number(part.max_abs_error)} of {_number(part.tolerance)} allowed, noise floor "
        f"{_number(part.noise_floor)}, {part.samples} samples"
    )


def _latency(part: LatencyResult) -> str:
    if part.control is None:
        return "-"
    control = part.control
    return (
        f"{part.ratio:.3f}x [{part.ci_low:.3f}, {part.ci_high:.3f}], {part.rule} within "
        f"{part.margin:g}; control {control.ratio:.3f}x [{control.low:.3f}, {control.high:.3f}]; "
        f"{part.candidate_ms:.3f} ms against {part.reference_ms:.3f} ms; {part.sessions} sessions "
        f"of {part.rounds} rounds"
    )


def _differences(report: ParityReport) -> list[str]:
    lines = list(report.structure.differences)
    more = len(lines) - _SHOWN_DIFFERENCES
    return lines if more <= 0 else [*lines[:_SHOWN_DIFFERENCES], f"and {more} more"]


def _notes(report: ParityReport) -> list[str]:
    return [str(note) for note in report.environment.get("notes", ())]


def _measured_on(report: ParityReport) -> str:
    device = report.environment.get("device", {})
    versions = report.environment.get("versions", {})
    where = f"{device.get('name', '-')} ({device.get('chosen_because', '-')})"
    return f"device {where}, onnxruntime {versions.get('onnxruntime', '-')}"


def _file_rows(files: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            f"`{name}`",
            str(entry["sha256"])[:_HASH_DIGITS],
            f"{entry['bytes']:,}",
            str(entry.get("opset") or "-"),
            str(entry.get("exporter") or "-"),
        )
        for name, entry in files.items()
    ]


def _markdown_table(rows: list[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]


def _cell(value: str) -> str:
    """Text that a Markdown table or list shows as it is, also when a model's names are hostile."""
    safe = value.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(safe.split())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
