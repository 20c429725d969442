"""`opdf-compile demo`: the whole job on real handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opdf_compile.cli import options as o
from opdf_compile.cli.terminal import opened
from opdf_compile.cli.verify import verdict_line, verdict_table

if TYPE_CHECKING:
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
        from opdf_compile.distill.demo import run_demo

        with terminal.busy("demo") as progress:
            (task,) = progress.task_ids
            result = run_demo(out, progress=lambda text: progress.update(task, description=text))
        terminal.show(
            *accuracies(result),
            verdict_table(result.report),
            f"Wrote {out}/",
            verdict_line(result.report),
        )
        terminal.result(_payload(result, out))
        # The demo shows what this machine can show: a noisy one does not make it a failure.
        return 1 if result.report.verdict == "fail" else 0


def accuracies(result: DemoResult) -> list[str]:
    """The accuracies as they are, whichever is higher."""
    return [
        f"teacher                       {result.teacher_accuracy:7.2%}",
        f"student, plain                {result.plain_accuracy:7.2%}",
        f"student, over-parameterised   {result.overparam_accuracy:7.2%}",
    ]


def _payload(result: DemoResult, out: Path) -> dict[str, object]:
    return {
        "schema": "opdf-demo/1",
        "out": str(out),
        "teacher_accuracy": result.teacher_accuracy,
        "plain_accuracy": result.plain_accuracy,
        "overparam_accuracy": result.overparam_accuracy,
        "files": [str(file) for file in result.files],
        "report": result.report.to_json(),
    }
