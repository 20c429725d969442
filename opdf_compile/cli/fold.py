"""`opdf-compile fold`: cores multiplied out, or the branches that a student brought itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opdf_compile.cli import options as o
from opdf_compile.cli.expand import require_suffix
from opdf_compile.cli.fold_branches import fold_own
from opdf_compile.cli.formats import size_of_file
from opdf_compile.cli.loading import ModelOptions, load
from opdf_compile.cli.terminal import Terminal, opened
from opdf_compile.errors import InputError, NoCores

if TYPE_CHECKING:
    from torch import nn

    from opdf_compile.io import FoldedFile

NAME = "fold"
_SUFFIXES = (".pt2", ".safetensors", ".onnx")
EXAMPLES = (
    "$ opdf-compile fold expanded.pt2 -o student.pt2\n\n"
    "$ opdf-compile fold expanded.pt2 --weights trained.safetensors -o student.safetensors\n\n"
    "$ opdf-compile fold expanded.pt2 -o trained.onnx --model student.onnx\n\n"
    "$ opdf-compile fold 'timm:repvit_m0_9' --weights trained.safetensors -o student.onnx"
)


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="What expand wrote, trained or not; or a model with branches of its own, in any "
            "form that export takes.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            metavar="OUT",
            help="OUT.pt2, OUT.safetensors with the student's own keys, or OUT.onnx: of cores for "
            "an ONNX student (with --model), of branches with check data.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="TRAINED", help="The trained state, .safetensors or .pt2."
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="Of cores: the student that the weights belong to."
        ),
    ] = None,
    by: Annotated[
        Literal["auto", "graph", "method"],
        typer.Option(
            "--by",
            help="Of branches: by graph, by the class's own method, or by the method where one "
            "holds.",
        ),
    ] = "auto",
    norms: Annotated[
        bool,
        typer.Option("--norms", help="Of branches, by graph: fold lone batch norms too."),
    ] = False,
    input: o.Input = None,
    inputs: o.InputFile = None,
    size: o.Size = None,
    trust_pickle: o.TrustPickle = False,
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Fold what was there for training only: the cores of expand, or a model's own branches.

    Cores: the student again, with its own keys, shapes and dtypes. Branches (RepVGG, MobileOne,
    adapters, chains of linear layers): one layer for each group that is linear in one input,
    checked in float64 against the model as it was. A model without any is refused (exit 2).
    """
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        require_suffix(out, _SUFFIXES)
        plain = _student(terminal, student, trust_pickle) if student else None
        folded = _from_cores(terminal, model, weights, plain, trust_pickle)
        if folded is None:
            asked = ModelOptions(model, weights, tuple(input or ()), inputs, size, trust_pickle)
            fold_own(terminal, asked, out, by, norms)
            return
        if by != "auto" or norms:
            raise InputError(
                f"--by and --norms are for branches, {model} holds cores; leave them out"
            )
        with terminal.busy(f"writing {out}"):
            if out.suffix == ".onnx":
                from opdf_compile.io import save_onnx

                save_onnx(folded, plain, out)
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
                "expanded": model,
                "out": str(out),
                "tensors": len(folded.state),
                "notes": list(notes),
            }
        )


def _from_cores(
    terminal: Terminal,
    model: str,
    weights: Path | None,
    student: nn.Module | None,
    trust_pickle: bool,
) -> FoldedFile | None:
    """The folded cores of a file that expand wrote; None for any other model.

    Raises:
        UserError: The file cannot be used.
    """
    if not model.endswith((".pt2", ".safetensors")):
        if student is not None:
            raise InputError(
                f"--model goes with a file that expand wrote, found {model}; leave --model out"
            )
        return None
    from opdf_compile.io import fold_file

    try:
        with terminal.busy(f"folding {model}"):
            return fold_file(model, weights=weights, model=student, trust_pickle=trust_pickle)
    except NoCores:
        if student is not None or model.endswith(".safetensors"):
            raise
        return None


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
