"""`opdf-compile check-data`: evidence for an ONNX file that another tool exported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from opdf_compile.cli import options as o
from opdf_compile.cli.formats import size_of_file, table
from opdf_compile.cli.loading import ModelOptions, load
from opdf_compile.cli.terminal import opened

if TYPE_CHECKING:
    from opdf_compile.artefacts import FoldRecord
    from opdf_compile.foreign import By
    from opdf_compile.io import LoadedModel

NAME = "check-data"
EXAMPLES = (
    "$ opdf-compile check-data 'timm:resnet18' --onnx theirs.onnx\n\n"
    "$ opdf-compile check-data model.py:build --onnx theirs.onnx --inputs samples.npz\n\n"
    "$ opdf-compile check-data model.py:unfolded --onnx merged.onnx --folded auto\n\n"
    "$ opdf-compile verify theirs.onnx --reference reference.onnx"
)


def command(
    model: o.Model,
    onnx: Annotated[
        Path,
        typer.Option(
            "--onnx", metavar="X.onnx", help="The file that another tool exported from MODEL."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="F.check.npz", help="Where to write; beside X.onnx by default."
        ),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs",
            metavar="F.npz",
            help="Sample inputs by the file's input names: NAME, or NAME@0, NAME@1, ... for "
            "several samples.",
        ),
    ] = None,
    samples: o.Samples = None,
    folded: Annotated[
        Literal["auto", "graph", "method"] | None,
        typer.Option(
            "--folded",
            help="The other tool folded MODEL's branches, and verify shall refute a file in which "
            "it did not; MODEL is folded here, by this way, to know what must be gone.",
        ),
    ] = None,
    weights: o.Weights = None,
    input: o.Input = None,
    size: o.Size = None,
    trust_pickle: o.TrustPickle = False,
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Write the evidence with which `verify` judges an ONNX file that another tool exported.

    It holds sample inputs, the float64 outputs of the torch MODEL, and the model's own error.
    Inputs and outputs of file and model belong together by name where the names agree, else by
    position. Without --inputs, the example of MODEL or of --input is the first sample.
    """
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        loaded = load(
            terminal, ModelOptions(model, weights, tuple(input or ()), None, size, trust_pickle)
        )
        from opdf_compile.artefacts import read_check
        from opdf_compile.io import write_check_data

        given = _example(loaded, onnx) if inputs is None else inputs
        record = None if folded is None else _record(loaded, folded)
        with terminal.busy(f"computing the float64 truth of {loaded.name}"):
            written = write_check_data(
                loaded.model, onnx, given, out, folded=record, samples=samples
            )
        data = read_check(written)
        rows = table("Written", "file", "size", "samples", numbers=("size", "samples"))
        rows.add_row(str(written), size_of_file(written.stat().st_size), str(len(data.samples)))
        terminal.show(rows)
        terminal.result(
            {
                "schema": "opdf-check-data/1",
                "model": model,
                "onnx": str(onnx),
                "onnx_sha256": data.onnx_sha256,
                "out": str(written),
                "dtype": data.dtype,
                "samples": len(data.samples),
                "folded": folded,
                "inputs": list(data.input_names),
                "outputs": list(data.output_names),
            }
        )


def _record(loaded: LoadedModel, by: By) -> FoldRecord:
    """What a file of the model must no longer hold once its branches are folded."""
    from opdf_compile.foreign import fold_model

    model, args, kwargs = loaded.model, loaded.args, loaded.kwargs
    return fold_model(model, args, kwargs, dynamic=loaded.dynamic, by=by).record


def _example(loaded: LoadedModel, onnx: Path) -> dict[str, Any]:
    """The model's own example inputs, or those of --input, under the file's names."""
    from opdf_compile.artefacts import read_interface
    from opdf_compile.io import example_of

    return example_of(loaded.model, (loaded.args, loaded.kwargs), read_interface(onnx))
