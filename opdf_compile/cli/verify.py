"""`opdf-compile verify`: the parity verdict, as a table, JSON, Markdown and exit code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from opdf_compile.cli import options as o
from opdf_compile.cli.formats import table
from opdf_compile.cli.terminal import opened, require_folder

if TYPE_CHECKING:
    from rich.table import Table

    from opdf_compile.parity import ParityReport

NAME = "verify"
EXAMPLES = (
    "$ opdf-compile verify student.onnx --reference reference.onnx\n\n"
    "$ opdf-compile verify bundle/ --only structure,numerics --json report.json\n\n"
    "$ opdf-compile verify student.onnx --reference reference.onnx \\\n"
    "    --shapes input_ids=1x128,32x128 --html report.html\n\n"
    "$ opdf-compile verify bundle/ --runtime openvino"
)
_COLOURS = {"pass": "bold green", "fail": "bold red"}


def command(
    candidate: Annotated[
        Path,
        typer.Argument(
            metavar="CANDIDATE", help="A bundle folder, or an ONNX file.", show_default=False
        ),
    ],
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="REF.onnx", help="The untouched student's export."),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run the models.")
    ] = "auto",
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME[:DEVICE]",
            help="What runs the models, and where; `doctor` lists what there is.",
        ),
    ] = "onnxruntime",
    margin: Annotated[
        str,
        typer.Option(
            metavar="auto|0.02",
            help="Slowdown that is allowed; auto is 0.02 on CUDA and 0.05 on CPU.",
        ),
    ] = "auto",
    latency: Annotated[
        Literal["no-slower", "equal"], typer.Option(help="The claim that latency is tested for.")
    ] = "no-slower",
    on_inconclusive: Annotated[
        Literal["warn", "fail"],
        typer.Option(help="What a machine too noisy for the margin means."),
    ] = "warn",
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="F.npz", help="Check data; the default is CANDIDATE.check.npz, if there is one."
        ),
    ] = None,
    reference_check: Annotated[
        Path | None,
        typer.Option(metavar="F.npz", help="The reference's, where it does not lie beside it."),
    ] = None,
    budget: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time for the latency measurement.")
    ] = 60.0,
    only: Annotated[
        str | None,
        typer.Option(metavar="CHECKS", help="Some of structure,numerics,latency."),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT=1x128,32x128",
            help="Shapes to measure; repeatable, one input each. The default is the check data's.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="F.png", help="Draw the latency, or how the graphs differ."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="F.html", help="Write the report as one HTML page.")
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            metavar="F.md", help="Write the report as Markdown; append to $GITHUB_STEP_SUMMARY."
        ),
    ] = None,
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> int:
    """Prove that an export has the structure, numbers and latency of the untouched student's.

    A bundle also gets the report as report.json and report.html (not with --only).

    Exit codes: 0 parity; 1 refuted; 2 bad input; 3 latency inconclusive; 4 numerics not checked.
    """
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        for target in (summary, html):
            if target:
                require_folder(target)
        from opdf_compile.parity import require_installed, verify

        # A partial verdict does not replace a whole one.
        bundle = candidate if candidate.is_dir() and only is None else None
        if html or bundle:
            page = html or f"{candidate / 'report.html'}, which a bundle gets without --only,"
            require_installed(f"the page {page}", "jinja2", "matplotlib")
        with terminal.busy(f"verifying {candidate}") as say:
            report = verify(
                candidate,
                reference,
                device=device,
                margin=margin,
                latency=latency,
                on_inconclusive=on_inconclusive,
                check=check,
                reference_check=reference_check,
                budget=budget,
                only=only,
                shapes=shapes,
                plot=plot,
                progress=say,
                runtime=runtime,
            )
        _save(report, bundle, html, summary)
        terminal.show(
            verdict_table(report), *more_tables(report), *details(report), verdict_line(report)
        )
        terminal.result(report.to_json())
        return report.exit_code


def verdict_table(report: ParityReport) -> Table:
    """One row per check: its verdict and the figures behind it."""
    from opdf_compile.parity import verdict_rows

    made = table("Parity", "check", "verdict", "finding")
    for name, verdict, finding in verdict_rows(report):
        made.add_row(name, _coloured(verdict), finding)
    return made


def more_tables(report: ParityReport) -> list[Table]:
    """The shapes where there are several, and what was measured but decides nothing."""
    from opdf_compile.parity import cost_rows, shape_rows

    shapes = shape_rows(report.latency)
    titled = {"Shapes": shapes if len(shapes) > 2 else [], "Beside it": cost_rows(report)}
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
    return Text.assemble("verdict: ", _coloured(report.verdict))


def _coloured(verdict: str) -> Text:
    return Text(verdict, style=_COLOURS.get(verdict, "bold yellow"))


def _save(
    report: ParityReport, bundle: Path | None, html: Path | None, summary: Path | None
) -> None:
    """Write the report's forms; a bundle gets its own."""
    if summary:
        _summarise(summary, report.to_markdown())
    if html:
        report.save_html(html)
    if bundle:
        report.save(bundle / "report.json")
        report.save_html(bundle / "report.html")


def _summarise(path: Path, text: str) -> None:
    """Write Markdown; a summary that several steps of a CI job share is added to."""
    from opdf_compile.files import atomic_write

    shared = os.environ.get("GITHUB_STEP_SUMMARY")
    if shared and path.exists() and path.resolve() == Path(shared).resolve():
        text = path.read_text(encoding="utf-8") + text
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
