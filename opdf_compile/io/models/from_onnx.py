"""The MODEL argument `file.onnx?train=all&NAME=NUMBER`."""

from __future__ import annotations

import re
from pathlib import Path

from opdf_compile.errors import InputError
from opdf_compile.files import parse_query
from opdf_compile.io.models.example_inputs import InputOptions
from opdf_compile.io.models.loaded import LoadedModel
from opdf_compile.io.onnx_student.drawn_examples import example_inputs
from opdf_compile.io.onnx_student.onnx_loading import load_onnx


def load_onnx_model(match: re.Match[str], options: InputOptions) -> LoadedModel:
    """Load an ONNX file with example inputs made from its input types.

    Args:
        match: The parts of the argument, `path` and `query`.
        options: The user's own example inputs; none are made where there are any.

    Raises:
        ArtefactError: The file cannot be read.
        InputError: It has an unknown operator or option, or no example that was tried runs.
    """
    arguments = parse_query(match["query"], match.string)
    train = arguments.pop("train", "weights")
    if train not in ("weights", "all"):
        raise InputError(
            f"{match.string} asks for train={train}, wanted train=weights (the default) or "
            "train=all; correct it"
        )
    path = Path(match["path"])
    student = load_onnx(path, train=train, fixed=arguments)
    return LoadedModel(
        student,
        args=() if options else tuple(example_inputs(student).values()),
        dynamic=student.dynamic,
        name=path.stem,
        kind="onnx",
        drawn=not options,
        notes=student.notes,
    )
