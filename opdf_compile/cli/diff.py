"""`opdf-compile diff`: are two ONNX files the same graph, and if not, where do they part?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from opdf_compile.cli import options as o
from opdf_compile.cli.formats import table
from opdf_compile.cli.terminal import opened

if TYPE_CHECKING:
    from rich.table import Table

    from opdf_compile.parity import Comparison

NAME = "diff"
EXAMPLES = (
    "$ opdf-compile diff a.onnx b.onnx\n\n"
    "$ opdf-compile diff a.onnx b.onnx --values --plot difference.png --json -"
)
DIFFERENT = 1
_FEW = 5


def command(
    candidate: Annotated[
        Path, typer.Argument(metavar="A.onnx", help="An ONNX file.", show_default=False)
    ],
    reference: Annotated[
        Path, typer.Argument(metavar="B.onnx", help="Another one.", show_default=False)
    ],
    values: Annotated[
        bool,
        typer.Option("--values", help="Other numbers in parameters are a difference, too."),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="F.png", help="Draw where the graphs part first."),
    ] = None,
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> int:
    """Compare the graphs of two ONNX files; neither torch nor a runtime is needed.

    Names, order, storage of constants and metadata are told and make no difference. Sentences
    call A the candidate and B the reference.

    Exit codes: 0 equal; 1 different; 2 bad input.
    """
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        from opdf_compile.parity import compare, plot_target

        target = None if plot is None else plot_target(plot)
        with terminal.busy(f"comparing {candidate} and {reference}"):
            found = compare(candidate, reference)
        notes = list(found.notes)
        if target and found.equal:
            notes.append(f"{target} was not drawn: the graphs do not differ")
        elif target:
            found.plot(target)
        different = not found or bool(values and found.values.other)
        lines = [line for each in found.differences for line in f"difference: {each}".splitlines()]
        terminal.show(*lines, *_told(found), *notes, _last(found, different=different))
        terminal.result({**found.to_json(), "notes": notes, "exit_code": int(different)})
        return DIFFERENT if different else 0


def _told(found: Comparison) -> list[Table | str]:
    """What makes no difference to the graph."""
    shown: list[Table | str] = []
    if found.cosmetic:
        made = table("Cosmetic", "what", "A", "B")
        for row in found.cosmetic:
            made.add_row(row.what, row.candidate or "-", row.reference or "-")
        shown.append(made)
    other = found.values.other
    if other:
        more = ", .." if len(other) > _FEW else ""
        shown.append(
            f"{len(other)} of {found.values.parameters} parameters hold other numbers: "
            f"{', '.join(other[:_FEW])}{more}"
        )
    return shown


def _last(found: Comparison, *, different: bool) -> Text:
    """The last line that a person reads."""
    if not found:
        return Text.assemble("graphs: ", ("different", "bold red"))
    said = Text.assemble("graphs: ", ("equal", "bold green"), f" ({found.nodes} nodes)")
    return Text.assemble(said, ", values: ", ("different", "bold red")) if different else said
