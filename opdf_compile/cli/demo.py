"""`opdf-compile demo`: the whole job on real handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opdf_compile.cli import options as o
from opdf_compile.cli.formats import table
from opdf_compile.cli.terminal import opened
from opdf_compile.cli.verdicts import details, verdict_line, verdict_table

if TYPE_CHECKING:
    from rich.table import Table

    from opdf_compile.distill.demo import DemoResult

NAME = "demo"
EXAMPLES = "$ opdf-compile demo -o demo-out"


def command(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="The bundle folder to write.")
    ] = Path("demo-out"),
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> int:
    """Run the whole job on real handwritten digits; nothing is downloaded.

    Trains a teacher, then the same student twice with the same budget, plain and
    over-parameterised; folds, exports, verifies, and writes a bundle with report and plots.
    """
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        from opdf_compile.distill.demo import finding, run_demo

        with terminal.busy("demo") as say:
            result = run_demo(out, progress=say)
        terminal.show(
            accuracy_table(result),
            finding(result.race),
            result.race.plan.totals(),
            "",
            verdict_table(result.report),
            *details(result.report),
            verdict_line(result.report),
            f"Wrote {out}/",
            f"  {out}/report.html   the verdict with its plots: open it in a browser",
            f"  {out}/report.md     what was trained, and how well it does",
        )
        race = result.race
        terminal.result(
            {
                "schema": "opdf-demo/1",
                "out": str(out),
                "teacher_accuracy": race.teacher_accuracy,
                "plain_accuracy": race.plain.accuracy,
                "overparam_accuracy": race.overparam.accuracy,
                "files": [str(file) for file in result.files],
                "report": result.to_json(),
            }
        )
        # The demo shows what this machine can show: a noisy one does not make it a failure.
        return 1 if result.report.verdict == "fail" else 0


def accuracy_table(result: DemoResult) -> Table:
    """The accuracies as they are, whichever is higher."""
    from opdf_compile.distill.demo import ACCURACY_HEAD, accuracy_rows

    title = f"Test accuracy on {result.race.sizes['test']} images that no choice looked at"
    made = table(title, *ACCURACY_HEAD, numbers=ACCURACY_HEAD[1:])
    made.add_row("(teacher)", "", f"{result.race.teacher_accuracy:.2%}", "", "")
    for row in accuracy_rows(result.race):
        made.add_row(*row)
    return made
