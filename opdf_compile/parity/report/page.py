"""The report as one HTML page: no script, no network, nothing beside it.

The template escapes every value, because names of nodes and outputs come out of files that nobody
vouches for. Figures are the ones that `--plot` draws, as SVG inside the page.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from opdf_compile.parity.latency.shape_option import shape_text
from opdf_compile.parity.report import figures, findings
from opdf_compile.parity.report.drops import drop_rows

if TYPE_CHECKING:
    from opdf_compile.parity.numerics.numerics_result import OutputError
    from opdf_compile.parity.report.parity_result import ParityResult

# What a bar shows is linear up to the tolerance; beyond it, that it is beyond.
_FULL_BAR = 100.0


def page(report: ParityResult) -> str:
    """The whole page as text."""
    import jinja2
    import markupsafe

    source = importlib.resources.files(__package__).joinpath("page.html.j2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(source.read_text(encoding="utf-8"))
    text = template.render(
        report=report,
        meaning=findings.meaning(report),
        cards=findings.verdict_rows(report),
        outputs=[_output(error) for error in report.numerics.outputs],
        drops=drop_rows(report.numerics),
        shapes=findings.shape_rows(report.latency),
        scored=findings.metric_rows(report.metric),
        costs=findings.cost_rows(report),
        about=findings.about(report),
        facts=findings.facts(report),
        command=findings.verify_command(report),
        # A drawing is ours; all that came out of a file was escaped when it was drawn.
        pictures=[(title, markupsafe.Markup(svg), said) for title, svg, said in _pictures(report)],
        environment=_flat(report.environment),
        notes=findings.footnotes(report),
        files=findings.file_rows(report.files),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return text.lstrip()


def _output(error: OutputError) -> dict[str, Any]:
    """A row of the table of outputs: the error, what is allowed, and how full that is."""
    over = error.excess > 1
    return {
        "name": error.output,
        "verdict": "fail" if over else "not judged" if error.unjudged else "pass",
        "error": error.max_abs,
        "tolerance": error.tolerance_max,
        "rms": error.rms,
        "rms_tolerance": error.tolerance_rms,
        "filled": min(_FULL_BAR, _FULL_BAR * error.excess),
        "where": error.problem or error.unjudged or str(error.element or "no element"),
    }


def _pictures(report: ParityResult) -> Iterator[tuple[str, str, str]]:
    """Heading, drawing, and what it shows for readers who cannot see it."""
    difference = report.structure.picture
    if difference is not None:
        yield (
            "The first difference",
            figures.difference_svg(difference),
            "The graphs around the first difference, reference and candidate side by side; the "
            "differences are listed above in words.",
        )
    for shape in report.latency.per_shape:
        yield (
            f"Latency at {shape_text(shape.shape)}",
            figures.latency_svg(report.latency, shape),
            f"Times of the blocks, and the ratio of each group of sessions: {shape.ratio:.3f}, "
            f"90 % interval {shape.ci_low:.3f} to {shape.ci_high:.3f}.",
        )


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of a table, without the notes, which stand apart."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}, ")
        elif key != "notes":
            rows.append((name, findings.words(value)))
    return rows
