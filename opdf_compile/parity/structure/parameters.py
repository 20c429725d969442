"""Which constants of an ONNX graph are parameters of the model: the exporter's record."""

from __future__ import annotations

import math
from collections.abc import Iterator

from opdf_compile.artefacts import (
    RECORD,
    Constant,
    LinkedModel,
    Value,
    element_type,
    quantisation_constants,
    quantisation_of,
)

NOTE_GUESSED = (
    "floating-point initialisers of more than one element were taken for parameters and their "
    "values were not compared; compare files as opdf-compile exports them to have every other "
    "constant compared"
)
NOTE_WITHOUT_RECORD = (
    f"a file lacks the exporter's record of parameters ({RECORD}), so {NOTE_GUESSED}"
)

# Their floating-point operands past the first are settings (scales, a region of interest), however
# long they are.
_SETTINGS = ("Resize", "Upsample")


def note_of_lost(record: frozenset[str] | None, view: LinkedModel, name: str) -> str:
    """Say that a record names parameters which the file does not have; empty where it has all.

    A tool that rewrites a file (fuses a batch norm into a convolution, quantises) keeps the
    metadata and gives what it made of the weights other names.
    """
    lost = sorted((record or frozenset()) - named_constants(view).keys())
    if not record or not lost:
        return ""
    return (
        f"{name} was rewritten after export: it lacks {len(lost)} of the {len(record)} parameters "
        f"that its record ({RECORD}) names, such as {lost[0]!r}"
    )


def named_constants(view: LinkedModel) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Dtype and shape of every initialiser and Constant node by name, nested graphs included."""
    return {
        value.name: (value.constant.dtype, value.constant.shape)
        for value in _constants(view)
        if value.constant
    }


def guessed_parameters(view: LinkedModel) -> frozenset[str]:
    """Take floating-point constants of more than one element for parameters, settings excepted."""
    return frozenset(
        value.name
        for value in _constants(view)
        if value.constant and _looks_like_parameter(value.constant) and not _is_setting(value)
    )


def mark_parameters(view: LinkedModel, names: frozenset[str]) -> None:
    """Tell the constants of a view which of them are parameters of the model.

    What quantisation made of parameters and activations moves with them, whatever it is called and
    whoever wrote the file: scales, zero points, weights in few bits.
    """
    for value in _constants(view):
        if value.constant:
            value.constant.parameter = value.name in names
    for constant in quantisation_constants(view):
        constant.parameter = True


def note_of_quantised(candidate: LinkedModel, reference: LinkedModel) -> str:
    """Say how two quantised graphs were compared; empty where neither is quantised."""
    found = [quantisation_of(view) for view in (candidate, reference)]
    if found == [None, None]:
        return ""
    if None in found:
        side = "candidate" if found[0] else "reference"
        return f"only the {side} is quantised ({found[0] or found[1]}): quantise both alike"
    forms = str(found[0]) if found[0] == found[1] else f"{found[0]}; {found[1]}"
    return (
        f"both files are quantised ({forms}): operators, attributes and edges were compared, and "
        "scales, zero points and quantised weights by dtype and shape, not by value"
    )


def _constants(view: LinkedModel) -> Iterator[Value]:
    return (v for graph in view.graphs for v in graph.values.values() if v.constant)


def _looks_like_parameter(constant: Constant) -> bool:
    real = element_type(constant.dtype).startswith(("float", "bfloat", "complex"))
    return real and math.prod(constant.shape) > 1


def _is_setting(value: Value) -> bool:
    return any(node.op in _SETTINGS and place > 0 for node, place in value.readers)
