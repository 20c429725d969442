"""`opdf-compile export`: a model as ONNX with its check data, or as a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opdf_compile.cli import options as o
from opdf_compile.cli.formats import size_of_file, table
from opdf_compile.cli.loading import ModelOptions, load
from opdf_compile.cli.terminal import Terminal, opened

if TYPE_CHECKING:
    from opdf_compile.io import Export

NAME = "export"
EXAMPLES = (
    "$ opdf-compile export student.pt2 -o student.onnx\n\n"
    "$ opdf-compile export student.pt2 --reference 'timm:resnet18?num_classes=10' -o bundle/\n\n"
    "$ opdf-compile export student.pt2 -o student.onnx --samples photos.npz\n\n"
    "$ opdf-compile export student.pt2 --reference untouched.pt2 -o bundle/ \\\n"
    "    --dtype int8 --calibrate rows.npz"
)


def command(
    model: o.Model,
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="OUT", help="OUT.onnx, or a bundle folder.", show_default=False
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="MODEL", help="The untouched student, for a bundle."),
    ] = None,
    opset: Annotated[
        int | None, typer.Option("--opset", metavar="N", help="The ONNX opset, 13 or newer.")
    ] = None,
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"] | None,
        typer.Option(
            "--dtype", help="Type of the numbers, the model's own by default; int8 is calibrated."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="F.npz",
            help="For int8: rows of the data that the model will meet, an array by input name.",
        ),
    ] = None,
    executorch: Annotated[
        bool,
        typer.Option("--executorch", help="Write OUT.pte, too, for verify --runtime executorch."),
    ] = False,
    samples: o.Samples = None,
    weights: o.Weights = None,
    input: o.Input = None,
    inputs: o.InputFile = None,
    size: o.Size = None,
    trust_pickle: o.TrustPickle = False,
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Write ONNX, and beside it the evidence that `verify` needs.

    OUT.onnx gets OUT.check.npz: sample inputs, float64 outputs and the model's own error. A folder
    becomes a bundle with student, reference, check data, hashes and a model card, README.md; of a
    student that transformers or timm knows, also what they load it from.
    """
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        asked = ModelOptions(model, weights, tuple(input or ()), inputs, size, trust_pickle)
        loaded = load(terminal, asked)
        untouched = (
            load(terminal, replace(asked, model=reference, weights=None)) if reference else None
        )
        from opdf_compile.io import exported, hub_files, write

        # Without inputs an ONNX student draws its own, and others where no graph holds the first.
        drawn = all(model.drawn for model in (loaded, untouched) if model)
        with terminal.busy(f"exporting {loaded.name}"):
            student, plain = exported(
                loaded.model,
                () if drawn else loaded.args,
                loaded.kwargs,
                reference=untouched.model if untouched else None,
                dynamic=loaded.dynamic,
                opset=opset,
                dtype=dtype,
                samples=samples,
                calibrate=calibrate,
                executorch=executorch,
            )
            # A bundle gets configuration and tokenizer of the first model that has any.
            brought = (model.extra_files for model in (loaded, untouched) if model)
            extra = () if out.suffix == ".onnx" else next(filter(None, brought), ())
            hub = hub_files(loaded.model, untouched and untouched.model, extra)
            write(out, student, plain, extra_files=extra, hub=hub)
        _tell(terminal, model, out, student)


def _tell(terminal: Terminal, model: str, out: Path, student: Export) -> None:
    """The files that were written, and what the exporter had to say."""
    fixed = list(dict.fromkeys(student.fixed.values()))
    files = {str(file): file.stat().st_size for file in written(out)}
    rows = table("Written", "file", "size", numbers=("size",))
    for file, size in files.items():
        rows.add_row(file, size_of_file(size))
    costs = [f"int8: output {drop.output!r} is {drop}" for drop in student.drops]
    terminal.show(rows, *costs, *(f"note: {note}" for note in student.notes))
    for sentence in fixed:
        terminal.warn(sentence)
    terminal.result(
        {
            "schema": "opdf-export/1",
            "model": model,
            "out": str(out),
            "notes": [*student.notes, *fixed],
            "drops": [drop.to_json() for drop in student.drops],
            "files": files,
        }
    )


def written(out: Path) -> list[Path]:
    """The files of an export."""
    if out.is_dir():
        return sorted(file for file in out.rglob("*") if file.is_file())
    kinds = (".onnx", ".check.npz", ".pte")
    suffixes = (*kinds, *(f".reference{kind}" for kind in kinds))
    return [file for suffix in suffixes if (file := out.with_suffix(suffix)).exists()]
