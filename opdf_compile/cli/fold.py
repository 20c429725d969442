"""`opdf-compile fold`: the trained cores multiplied out into the student's own weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opdf_compile.cli import options as o
from opdf_compile.cli.expand import require_suffix
from opdf_compile.cli.formats import size_of_file
from opdf_compile.cli.loading import ModelOptions, load
from opdf_compile.cli.terminal import Terminal, opened

if TYPE_CHECKING:
    from torch import nn

NAME = "fold"
_SUFFIXES = (".pt2", ".safetensors", ".onnx")
EXAMPLES = (
    "$ opdf-compile fold expanded.pt2 -o student.pt2\n\n"
    "$ opdf-compile fold expanded.pt2 --weights trained.safetensors -o student.safetensors\n\n"
    "$ opdf-compile fold expanded.pt2 -o trained.onnx --model student.onnx"
)


def command(
    expanded: Annotated[
        Path,
        typer.Argument(
            metavar="EXPANDED", help="What expand wrote, trained or not.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            metavar="OUT",
            help="OUT.pt2, OUT.safetensors with the student's own keys, or OUT.onnx for an ONNX "
            "student (with --model).",
            show_default=False,
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="TRAINED", help="The trained state, .safetensors or .pt2."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The student that the weights belong to."),
    ] = None,
    trust_pickle: o.TrustPickle = False,
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Multiply the cores out: the student again, with its own keys, shapes and dtypes."""
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        require_suffix(out, _SUFFIXES)
        student = _student(terminal, model, trust_pickle) if model else None
        from opdf_compile.io import fold_file

        with terminal.busy(f"folding {expanded}"):
            folded = fold_file(expanded, weights=weights, model=student, trust_pickle=trust_pickle)
            if out.suffix == ".onnx":
                from opdf_compile.io import save_onnx

                save_onnx(folded, student, out)
            else:
                folded.save(out)
        # The graph of an ONNX file comes from the file, whatever the archive holds.
        notes = () if out.suffix == ".onnx" else folded.notes
        for note in notes:
            terminal.warn(note)
        terminal.show(f"Wrote {out} ({size_of_file(out.stat().st_size)})")
        terminal.result(
            {
                "schema": "opdf-fold/1",
                "expanded": str(expanded),
                "out": str(out),
                "tensors": len(folded.state),
                "notes": list(notes),
            }
        )


def _student(terminal: Terminal, model: str, trust_pickle: bool) -> nn.Module:
    """The student as a module, which tells shapes and tied names.

    Raises:
        UserError: It cannot be loaded.
    """
    from torch import nn

    loaded = load(terminal, ModelOptions(model, trust_pickle=trust_pickle))
    if isinstance(loaded.model, nn.Module):
        return loaded.model
    return loaded.programs["model"].module()
