"""`opdf-compile verify`: the parity verdict, as a table, JSON, Markdown and exit code."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opdf_compile.cli import options as o
from opdf_compile.cli.terminal import opened, require_folder
from opdf_compile.cli.verdicts import (
    details,
    more_tables,
    save,
    summary_lines,
    summary_table,
    verdict_line,
    verdict_table,
    write,
)
from opdf_compile.errors import InputError, UserError
from opdf_compile.files import is_folder

if TYPE_CHECKING:
    from opdf_compile.cli.terminal import Terminal
    from opdf_compile.parity import ParityReport

NAME = "verify"
EXAMPLES = (
    "$ opdf-compile verify student.onnx --reference reference.onnx\n\n"
    "$ opdf-compile verify bundle/ --only structure,numerics --json report.json\n\n"
    "$ opdf-compile verify student.onnx --reference reference.onnx \\\n"
    "    --shapes input_ids=1x128,32x128 --html report.html\n\n"
    "$ opdf-compile verify bundles.txt --only structure,numerics --junit parity.xml\n\n"
    "$ opdf-compile verify bundle/ --runtime openvino\n\n"
    "$ opdf-compile verify bundle/ --samples photos.npz --metric metrics.py:accuracy"
)


def command(
    candidate: Annotated[
        Path,
        typer.Argument(
            metavar="CANDIDATE",
            help="A bundle folder, an ONNX file, or a list of them: a .txt with one in each line.",
            show_default=False,
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
            help="Slowdown that is allowed; auto is 0.02 on an accelerator, else 0.05.",
        ),
    ] = "auto",
    latency: Annotated[
        Literal["no-slower", "equal"], typer.Option(help="The claim that latency is tested for.")
    ] = "no-slower",
    on_inconclusive: Annotated[
        Literal["warn", "fail"],
        typer.Option(help="What a latency or a metric that cannot be decided means."),
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
        typer.Option(metavar="CHECKS", help="Some of structure,numerics,latency,metric."),
    ] = None,
    samples: o.Samples = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:callable",
            help="Your function of (outputs, samples): one number for each row, or one for all. "
            "It is imported and called.",
        ),
    ] = None,
    metric_margin: Annotated[
        float,
        typer.Option(metavar="0.005", help="What the candidate's metric may be worse by."),
    ] = 0.005,
    higher_is_better: Annotated[
        bool,
        typer.Option(
            "--higher-is-better/--lower-is-better", help="Which way the metric is better."
        ),
    ] = True,
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
    junit: Annotated[
        Path | None, typer.Option(metavar="F.xml", help="Write the verdicts as JUnit XML.")
    ] = None,
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> int:
    """Prove that an export has the structure, numbers and latency of the untouched student's.

    A bundle also gets the report as report.json and report.html, and the verdict in its model card,
    README.md (not with --only).

    Exit codes: 0 parity; 1 refuted; 2 bad input; 3 latency or metric inconclusive; 4 numerics
    not checked; of a list, the first of 1, 2, 4 and 3 that one of them has.
    """
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        for target in (summary, html, junit):
            if target:
                require_folder(target)
        from opdf_compile.parity import is_manifest

        options = {
            "device": device,
            "runtime": runtime,
            "margin": margin,
            "latency": latency,
            "on_inconclusive": on_inconclusive,
            "budget": budget,
            "only": only,
            "shapes": shapes,
            "samples": samples,
            "metric": metric,
            "metric_margin": metric_margin,
            "higher_is_better": higher_is_better,
        }
        alone = {
            "reference": reference,
            "check": check,
            "reference_check": reference_check,
            "plot": plot,
        }
        if is_manifest(candidate):
            _require_none(candidate, alone | {"html": html, "summary": summary})
            return _many(terminal, candidate, junit, options)
        return _one(terminal, candidate, html, summary, junit, options | alone)


def _one(
    terminal: Terminal,
    candidate: Path,
    html: Path | None,
    summary: Path | None,
    junit: Path | None,
    options: dict[str, Any],
) -> int:
    from opdf_compile.parity import as_junit, require_installed, verify

    # A partial verdict does not replace a whole one.
    bundle = candidate if is_folder(candidate) and options["only"] is None else None
    if html or bundle:
        page = html or f"{candidate / 'report.html'}, which a bundle gets without --only,"
        require_installed(f"the page {page}", "jinja2", "matplotlib")
    began = time.perf_counter()
    try:
        with terminal.busy(f"verifying {candidate}") as say:
            report = verify(candidate, progress=say, **options)
    except UserError as error:
        if junit:
            seconds = time.perf_counter() - began
            write(junit, as_junit([(str(candidate), None, str(error), seconds)]))
        raise
    seconds = time.perf_counter() - began
    if junit:
        write(junit, as_junit([(str(candidate), report, "", seconds)]))
    save(report, bundle, html, summary)
    terminal.show(
        verdict_table(report), *more_tables(report), *details(report), verdict_line(report)
    )
    terminal.result(report.to_json())
    return report.exit_code


def _many(terminal: Terminal, manifest: Path, junit: Path | None, options: dict[str, Any]) -> int:
    """Verify what a manifest names; a bundle gets its own report, as alone."""
    from opdf_compile.parity import as_junit, read_manifest, require_installed, verify_many

    candidates = read_manifest(manifest)
    whole = options["only"] is None
    if whole and any(is_folder(path) for path in candidates.values()):
        require_installed("a bundle's report.html", "jinja2", "matplotlib")

    def done(path: Path, report: ParityReport) -> None:
        if whole and is_folder(path):
            save(report, path, None, None)

    with terminal.busy(f"verifying {manifest}") as say:
        found = verify_many(candidates, done=done, progress=say, **options)
    if junit:
        write(junit, as_junit((e.name, e.report, e.error, e.seconds) for e in found.entries))
    terminal.show(summary_table(found), *summary_lines(found))
    terminal.result(found.to_json())
    return found.exit_code


def _require_none(manifest: Path, given: dict[str, Path | None]) -> None:
    """Refuse what one candidate alone can have."""
    for name, value in given.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option} is for one candidate, and {manifest} lists several; leave it out (a "
                "bundle holds its reference and gets its report), or verify them one by one"
            )
