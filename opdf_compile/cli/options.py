"""The options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL_PANEL = "Model"
_OUTPUT_PANEL = "Output"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="file.pt2, file.onnx (with ?train=all or ?INPUT=NUMBER), "
        "package.module:callable or file.py:callable (with ?key=value&...), "
        "timm:NAME or hf:DIR",
        show_default=False,
    ),
]
Rule = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="GLOB=NAME",
        help="What these weights become, such as 'head.*=spectral(rank=8)' or 'head.*=none'; "
        "repeatable, the first that names a weight counts.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Load these weights (.safetensors) into the model.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]SHAPE:DTYPE",
        help="An example input, such as x=2x3x224x224:float32; a letter is a dynamic axis.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
InputFile = Annotated[
    Path | None,
    typer.Option(
        "--inputs",
        metavar="FILE.npz",
        help="Example inputs from a file, by name.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
Samples = Annotated[
    Path | None,
    typer.Option(
        "--samples",
        metavar="F.npz",
        help="Rows of your own by input name, the rows on the first axis (NAME@0, NAME@1, ... for "
        "several shapes); arrays of other names are labels.",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="B=2,S=24",
        help="Sizes of the letters in --input.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Load files that can run code when they are loaded. Only for files you made.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the result as JSON; - is the standard output, and nothing else goes there.",
        rich_help_panel=_OUTPUT_PANEL,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("-q", "--quiet", help="Print nothing but errors.", rich_help_panel=_OUTPUT_PANEL),
]
Verbose = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="Say what is being done.", rich_help_panel=_OUTPUT_PANEL),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Say everything, and show the traceback of an error.",
        rich_help_panel=_OUTPUT_PANEL,
    ),
]
