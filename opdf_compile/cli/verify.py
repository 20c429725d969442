"""`opdf-compile verify`: the parity verdict, as a table, JSON, Markdown and exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from opdf_compile.cli import options as o
from opdf_compile.cli.tables import table
from opdf_compile.cli.terminal import opened
from opdf_compile.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from opdf_compile.verify.report import ParityReport

NAME = "verify"
EXAMPLES = (
    "$ opdf-compile verify student.onnx --reference reference.onnx\n\n"
    "$ opdf-compile verify bundle/ --only structure,numerics --json report.json"
)
CHECKS = ("structure", "numerics", "latency")
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
    budget: Annotated[
        float, typer.Option(metavar="SECONDS", min=1.0, help="Time for the latency measurement.")
    ] = 60.0,
    only: Annotated[
        str | None,
        typer.Option(metavar="CHECKS", help="Some of structure,numerics,latency."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="F.png", help="Draw the latency distributions.")
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(metavar="F.md", help="Write the report as Markdown.")
    ] = None,
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> int:
    """Prove that an export has the structure, numbers and latency of the untouched student's.

    Exit codes: 0 parity; 1 refuted; 2 bad input; 3 latency inconclusive; 4 numerics not checked.
    """
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        allowed, checks = parse_margin(margin), parse_only(only)
        from opdf_compile.verify import verify

        with terminal.busy(f"verifying {candidate}"):
            report = verify(
                candidate,
                reference,
                device=device,
                margin=allowed,
                latency=latency,
                on_inconclusive=on_inconclusive,
                check=check,
                budget=budget,
                only=checks,
                plot=plot,
            )
        if summary:
            _write(summary, report.to_markdown())
        terminal.show(verdict_table(report), *differences(report), verdict_line(report))
        terminal.result(report.to_json())
        return report.exit_code


def parse_margin(text: str) -> float | Literal["auto"]:
    """The margin as a number.

    Raises:
        InputError: It is no number between 0 and 1.
    """
    if text == "auto":
        return "auto"
    try:
        margin = float(text)
    except ValueError:
        margin = -1.0
    if not 0.0 < margin < 1.0:
        raise InputError(
            f"--margin is {text!r}; wanted auto or a number between 0 and 1, such as 0.02 for 2 %"
        )
    return margin


def parse_only(text: str | None) -> tuple[str, ...] | None:
    """The checks that were asked for.

    Raises:
        InputError: One of them does not exist.
    """
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in CHECKS]
    if unknown or not names:
        raise InputError(
            f"--only is {text!r}; wanted one or more of {', '.join(CHECKS)}, separated by commas"
        )
    return names


def verdict_table(report: ParityReport) -> Table:
    """One row per check: its verdict and the figures behind it."""
    data = report.to_json()
    rows = table("Parity", "check", "verdict", "figures")
    for name, figures in (
        ("structure", _structure),
        ("numerics", _numerics),
        ("latency", _latency),
    ):
        part = data.get(name)
        if part:
            rows.add_row(name, _coloured(part["verdict"]), figures(part))
    return rows


def differences(report: ParityReport) -> list[str]:
    """What differs between the graphs, one line each."""
    found = (report.to_json().get("structure") or {}).get("differences", [])
    return [f"difference: {difference}" for difference in found]


def verdict_line(report: ParityReport) -> Text:
    """The last line that a person reads."""
    return Text.assemble("verdict: ", _coloured(report.verdict))


def _coloured(verdict: str) -> Text:
    return Text(verdict, style=_COLOURS.get(verdict, "bold yellow"))


def _structure(part: dict[str, Any]) -> str:
    return f"{part['nodes']} nodes, {len(part['differences'])} differences"


def _numerics(part: dict[str, Any]) -> str:
    if part["verdict"] == "not_checked":
        return "no check data"
    return (
        f"max error {part['max_abs_error']:.2e}, allowed {part['tolerance']:.2e}, noise floor "
        f"{part['noise_floor']:.2e}, {part['samples']} samples"
    )


def _latency(part: dict[str, Any]) -> str:
    if part.get("ratio") is None:
        return "not measured"
    return (
        f"ratio {part['ratio']:.3f} [{part['ci_low']:.3f}, {part['ci_high']:.3f}], margin "
        f"{part['margin']:g} ({part['rule']}), {part['candidate_ms']:.3g} ms against "
        f"{part['reference_ms']:.3g} ms on {part['device']}"
    )


def _write(path: Path, text: str) -> None:
    from opdf_compile.io.files import atomic_write

    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
