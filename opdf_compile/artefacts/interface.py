"""Inputs and outputs of an ONNX file that anybody wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.artefacts.onnx_file import read_onnx
from opdf_compile.artefacts.onnx_tensors import element_type
from opdf_compile.errors import InputError

if TYPE_CHECKING:
    import onnx

# Element types by the names that numpy and torch share.
_FLOATING = ("float32", "float64", "float16", "bfloat16")
_WHOLE = {"bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64))}


@dataclass(frozen=True)
class Port:
    """One input or output.

    Attributes:
        name: Its name.
        dtype: Its dtype, such as "float32".
        axes: A number (fixed) or a letter (free) per axis; None where the file does not say.
    """

    name: str
    dtype: str
    axes: tuple[int | str, ...] | None

    def misfit(self, shape: tuple[int, ...]) -> str:
        """What is wrong with a shape ("shape (2, 3)"), or nothing."""
        if self.axes is None:
            return ""
        fits = len(shape) == len(self.axes) and all(
            isinstance(axis, str) or axis == size
            for axis, size in zip(self.axes, shape, strict=True)
        )
        return "" if fits else f"the shape {tuple(shape)}"

    def __str__(self) -> str:
        axes = "any shape" if self.axes is None else f"({', '.join(map(str, self.axes))})"
        return f"{axes} of {self.dtype}"


@dataclass(frozen=True)
class Interface:
    """What goes into and comes out of a file.

    Attributes:
        inputs: Its inputs in order, without those that have a default.
        outputs: Its outputs in order.
        dtype: The floating dtype of most of its weights.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    dtype: str

    @property
    def input_words(self) -> str:
        """The inputs' names, for a sentence."""
        return ", ".join(port.name for port in self.inputs) or "no input"


def read_interface(path: Path) -> Interface:
    """Read a file's inputs and outputs.

    Raises:
        ArtefactError: It is no ONNX file.
        InputError: An input or output is no tensor of numbers.
    """
    return interface_of(read_onnx(path), path)


def interface_of(model: onnx.ModelProto, path: Path) -> Interface:
    """The inputs and outputs of a parsed file, whose path is for messages.

    Raises:
        InputError: An input or output is no tensor of numbers.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    return Interface(
        tuple(_port(value, path) for value in graph.input if value.name not in weights),
        tuple(_port(value, path) for value in graph.output),
        _dtype(graph),
    )


def _port(value: onnx.ValueInfoProto, path: Path) -> Port:
    tensor = value.type.tensor_type
    dtype = _name(tensor.elem_type) if value.type.HasField("tensor_type") else ""
    if not dtype:
        raise InputError(
            f"{value.name!r} of {path} is no tensor of numbers, wanted tensors only; check data "
            "cannot hold it"
        )
    if not tensor.HasField("shape"):
        return Port(value.name, dtype, None)
    axes = [declared_axis(dim) for dim in tensor.shape.dim]
    named = (f"{value.name}_{i}" if axis == "" else axis for i, axis in enumerate(axes))
    return Port(value.name, dtype, tuple(named))


def declared_axis(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    """A size, or the name of a free axis; empty where it has none.

    Some exporters spell a free axis as the size -1, and the runtime reads it so.
    """
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return str(dim.dim_param)


def _name(element: int) -> str:
    """The name of a number's type; empty for what is no number that check data can hold."""
    name = element_type(element)
    return name if name in _FLOATING or name in _WHOLE else ""


def _dtype(graph: onnx.GraphProto) -> str:
    counts: Counter[str] = Counter({"float32": 0})
    for element, dims in _weights(graph):
        if (dtype := _name(element)) in _FLOATING:
            counts[dtype] += prod(dims)
    return counts.most_common(1)[0][0]


def _weights(graph: onnx.GraphProto) -> Iterable[tuple[int, Iterable[int]]]:
    for tensor in graph.initializer:
        yield tensor.data_type, tensor.dims
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.HasField("t"):
                yield attribute.t.data_type, attribute.t.dims
