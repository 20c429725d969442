"""The shapes to measure: read from ``--shapes``, completed by the axes that inputs share.

``--shapes input_ids=1x128,32x128`` asks for two shapes. The option is given once for each input,
and the k-th shapes of all of them belong together. An input that is not named follows: where the
model gives one of its axes the name of an axis whose size was asked for, it takes that size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.artefacts import declared_axis, element_type
from opdf_compile.errors import InputError

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]

_FORM = re.compile(r"[1-9][0-9]*(x[1-9][0-9]*)*", re.ASCII)
# Beyond this the runtime's own arithmetic on sizes overflows long before memory is asked for.
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Declared:
    """One input as the model declares it.

    Attributes:
        name: Its name.
        dtype: The element type as numpy writes it ("float32", "bfloat16"), else what was found.
        axes: A size, the name of an open axis, or None for an open axis without a name.
    """

    name: str
    dtype: str
    axes: tuple[int | str | None, ...]

    def __str__(self) -> str:
        sizes = "x".join("?" if axis is None else str(axis) for axis in self.axes)
        return f"{self.name} ({sizes or 'a scalar'})"


def parse_shapes(options: Sequence[str]) -> tuple[dict[str, Shape], ...]:
    """Read the values of ``--shapes``.

    Args:
        options: One "name=2x3,4x5" for each input.

    Raises:
        InputError: An option cannot be read, or inputs are given different numbers of shapes.
    """
    columns: dict[str, list[Shape]] = {}
    for option in options:
        name, _, text = option.rpartition("=")
        if not name:
            raise InputError(f"--shapes {option!r} names no input; write input_ids=1x128,32x128")
        if name in columns:
            raise InputError(f"--shapes gives {name!r} twice; separate its shapes by commas")
        columns[name] = [_sizes(option, part) for part in text.split(",")]
    counts = {name: len(shapes) for name, shapes in columns.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise InputError(
            f"--shapes gives different numbers of shapes ({found}), wanted equally many, since "
            "those in one place belong together; repeat a shape where it stays the same"
        )
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    repeated = next((row for index, row in enumerate(rows) if row in rows[:index]), None)
    if repeated is not None:
        raise InputError(f"--shapes asks for {shape_text(repeated)} twice; give it once")
    return tuple(rows)


def declared_inputs(model: onnx.ModelProto) -> tuple[Declared, ...]:
    """The inputs that a caller must give, in the model's order."""
    stored = {tensor.name for tensor in model.graph.initializer}
    found = []
    for value in model.graph.input:
        if value.name in stored:
            continue
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type"):
            found.append(Declared(value.name, str(value.type.WhichOneof("value")), ()))
            continue
        found_axes = map(declared_axis, kind.shape.dim)
        axes = tuple(None if axis == "" else axis for axis in found_axes)
        found.append(Declared(value.name, element_type(kind.elem_type), axes))
    return tuple(found)


def fit_shapes(
    asked: Mapping[str, Shape], declared: Sequence[Declared], model: Path
) -> dict[str, int]:
    """Check one row of shapes against the model; return the sizes of its named axes.

    Raises:
        InputError: An unknown input, a wrong rank, a fixed axis, or one axis of two sizes.
    """
    known = {value.name: value for value in declared}
    sizes: dict[str, int] = {}
    for name, shape in asked.items():
        if name not in known:
            inputs = ", ".join(known) or "no inputs"
            raise InputError(f"--shapes names the input {name!r}, {model} has {inputs}; name those")
        _fit(known[name], shape, sizes, model)
    return sizes


def shape_text(shapes: Mapping[str, Shape]) -> str:
    """Shapes as the option writes them: "input_ids=1x128, mask=1x128"."""
    return ", ".join(
        f"{name}={'x'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes.items()
    )


def batch_size(shapes: Mapping[str, Shape], declared: Sequence[Declared]) -> int | None:
    """How many samples one run computes; None where no axis is the batch.

    The batch is an axis that is named so, else the first axis where all inputs share its size.
    """
    found = {
        size
        for value in declared
        for axis, size in zip(value.axes, shapes.get(value.name, ()), strict=False)
        if isinstance(axis, str) and "batch" in axis.lower()
    }
    if not found:
        found = {shape[0] for shape in shapes.values() if shape}
    return found.pop() if len(found) == 1 else None


def _sizes(option: str, part: str) -> Shape:
    text = part.strip()
    sizes = tuple(map(int, text.split("x"))) if _FORM.fullmatch(text) else ()
    if not sizes or max(sizes) > _LARGEST:
        raise InputError(
            f"--shapes {option!r} has {part!r}, wanted sizes from 1 up, such as 1x128; separate "
            "several shapes by commas"
        )
    return sizes


def _fit(value: Declared, shape: Shape, sizes: dict[str, int], model: Path) -> None:
    found = "x".join(map(str, shape))
    if len(shape) != len(value.axes):
        raise InputError(
            f"--shapes gives {value.name} the shape {found} of {len(shape)} axes, {model} declares "
            f"{value} with {len(value.axes)}; give as many sizes"
        )
    for index, (axis, size) in enumerate(zip(value.axes, shape, strict=True)):
        if isinstance(axis, int) and axis != size:
            raise InputError(
                f"--shapes gives {value.name} the shape {found}, {model} fixes its axis {index} at "
                f"{axis}; give {axis} there, or export the model with that axis dynamic"
            )
        if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
            raise InputError(
                f"--shapes gives {value.name} the shape {found}, but another input makes the axis "
                f"{axis} {sizes[axis]} long, and {model} shares it; give equal sizes"
            )
