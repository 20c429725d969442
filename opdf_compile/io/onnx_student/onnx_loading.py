"""`load_onnx`: a `.onnx` file that nobody vouches for -> a student."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from opdf_compile.artefacts import Graph, link, opsets_of, read_onnx_with_data
from opdf_compile.errors import ArtefactError, InputError, first_line
from opdf_compile.io.onnx_student.constant_roles import RECURRENT_OPS
from opdf_compile.io.onnx_student.keys import identifier, keys_of
from opdf_compile.io.onnx_student.operands import Host, host, torch_dtype
from opdf_compile.io.onnx_student.operator_table import OLDEST_OPSET, require_known_operators
from opdf_compile.io.onnx_student.student import OnnxSource, OnnxStudent

if TYPE_CHECKING:
    import onnx

_LOG = logging.getLogger("opdf_compile")
Train = Literal["weights", "all"]


def load_onnx(
    path: str | os.PathLike[str],
    *,
    train: Train = "weights",
    fixed: Mapping[str, Any] | None = None,
) -> OnnxStudent:
    """Load an ONNX file as a module that trains, traces, folds and exports as ONNX again.

    Nothing in the file runs: its nodes are looked up in a table of operators.

    Args:
        path: A `.onnx` file for inference, opset 7 or newer.
        train: "weights" makes the weights of MatMul, Gemm, Conv and ConvTranspose trainable, which
            are those that a plan can take; "all" makes biases, norm scales and embedding tables
            trainable too. BatchNorm keeps its stored statistics in both.
        fixed: Numbers for inputs that steer the graph (a sampling rate that an If compares): the
            student has them built in and takes the other inputs only.

    Returns:
        The student, in eval mode. `student.dynamic` holds the axes that the file leaves open, and
        `student.notes` what a user should know.

    Raises:
        ArtefactError: The file is missing, damaged, or keeps data outside its folder.
        InputError: It holds an operator that has no torch form here.

    Example:
        >>> student = opdf.load_onnx("model.onnx")  # doctest: +SKIP
        >>> traced = opdf.trace(student, (x,), dynamic=student.dynamic)  # doctest: +SKIP
    """
    if train not in ("weights", "all"):
        raise InputError(f"train is {train!r}, wanted 'weights' or 'all'; choose one of them")
    file = Path(path)
    proto = read_onnx_with_data(file)
    source = make_source(proto, str(file), fixed or {})
    student = OnnxStudent(source, train_all=train == "all")
    student.notes = tuple(_notes(proto, student))
    return student.eval()


def make_source(
    proto: onnx.ModelProto, name: str, fixed: Mapping[str, Any] | None = None
) -> OnnxSource:
    """Parse a model.

    Args:
        proto: The model with its data. It is not changed.
        name: The file's name for messages.
        fixed: Numbers for inputs, by name.

    Raises:
        InputError: Its operator set is too old, or an operator or input has no torch form.
    """
    opsets = opsets_of(proto.opset_import)
    if opsets.get("", 0) < OLDEST_OPSET:
        raise InputError(
            f"{name} uses opset {opsets.get('', 'none')}, wanted {OLDEST_OPSET} or newer; convert "
            "it with onnx.version_converter"
        )
    model = link(_inlined(proto, name))
    require_known_operators(model)
    # The file's own constants come first, so that their keys do not depend on its functions.
    own = link(proto).main.constants() if proto.functions else ()
    inputs = _inputs(proto.graph, model.main, name)
    built_in = {key: _number(inputs, key, value, name) for key, value in (fixed or {}).items()}
    values = {inputs[key][0]: number for key, number in built_in.items()}
    inputs = {key: entry for key, entry in inputs.items() if key not in built_in}
    return OnnxSource(
        proto=proto,
        model=model,
        name=name,
        fixed=values,
        inputs={torch_name: original for torch_name, (original, _, _) in inputs.items()},
        axes={torch_name: axes for torch_name, (_, axes, _) in inputs.items()},
        dtypes={torch_name: dtype for torch_name, (_, _, dtype) in inputs.items()},
        keys=keys_of(constant.address for constant in (*own, *model.main.constants())),
    )


def _number(inputs: Mapping[str, Any], key: str, value: Any, name: str) -> Host:
    """A built-in input: one number in the file's dtype and rank.

    Raises:
        InputError: There is no such input, or it is no number.
    """
    if key not in inputs:
        raise InputError(
            f"{name} has no input {key!r} to fix, its inputs are {', '.join(inputs) or 'none'}; "
            "use one of these names"
        )
    _original, axes, dtype = inputs[key]
    try:
        scalar = float(value) if dtype.is_floating_point else int(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the input {key!r} of {name} is fixed to {value!r}, wanted one number"
        ) from error
    return host(np.full([1] * len(axes), scalar, dtype=object), dtype)


def _inlined(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with the bodies of its local functions in place of their calls."""
    if not proto.functions:
        return proto
    from onnx import inliner

    try:
        return inliner.inline_local_functions(proto)
    except Exception as error:  # The C++ inliner raises whatever it meets.
        raise ArtefactError(
            f"{name} has local functions that cannot be inlined "
            f"({first_line(error, 150)}); export the model again"
        ) from error


def _inputs(
    proto: onnx.GraphProto, graph: Graph, name: str
) -> Mapping[str, tuple[str, tuple[str | int, ...], torch.dtype]]:
    found: dict[str, tuple[str, tuple[str | int, ...], torch.dtype]] = {}
    by_name = {info.name: info for info in proto.input}
    # What has a default is a constant like any other.
    for original in (value.name for value in graph.inputs if value.constant is None):
        kind = by_name[original].type
        if not kind.HasField("tensor_type"):
            raise InputError(
                f"the input {original!r} of {name} is no tensor ({kind.WhichOneof('value')}), "
                "wanted tensors; give the PyTorch model that the file was exported from"
            )
        dtype = torch_dtype(kind.tensor_type.elem_type)
        if dtype is None:
            raise InputError(
                f"the input {original!r} of {name} has the ONNX element type "
                f"{kind.tensor_type.elem_type}, which torch does not calculate in; give the "
                "PyTorch model that the file was exported from"
            )
        plain = identifier(original)
        while plain in found:
            plain += "_"
        found[plain] = (original, _axes(plain, kind.tensor_type), dtype)
    return found


def _axes(name: str, kind: onnx.TypeProto.Tensor) -> tuple[str | int, ...]:
    """A number where the file has one, the name of a symbolic axis, else a name of its own."""
    if not kind.HasField("shape"):
        return ()
    axes: list[str | int] = []
    for place, dim in enumerate(kind.shape.dim):
        if dim.dim_value > 0:
            axes.append(int(dim.dim_value))
        elif any(c.isalnum() for c in dim.dim_param):
            axes.append(identifier(dim.dim_param))
        else:
            axes.append(f"{name}_{place}")
    return tuple(axes)


def _notes(proto: onnx.ModelProto, student: OnnxStudent) -> list[str]:
    notes = []
    if proto.training_info:
        notes.append(f"{student.source.name} holds training information, which is ignored and kept")
    quantised = _quantised(student.source.model.main)
    if quantised:
        notes.append(
            f"{len(quantised)} weights of {student.source.name} are quantised integers "
            f"({quantised[0]!r}, ...), which cannot be factorised: they are left as they are"
        )
    recurrent = [node.label for node in student.source.model.nodes if node.op in RECURRENT_OPS]
    if recurrent:
        notes.append(
            f"{len(recurrent)} recurrent layers of {student.source.name} ({recurrent[0]!r}, ...) "
            "keep their weights: the fused kernel wants them in one flat buffer"
        )
    return notes


def _quantised(graph: Graph) -> list[str]:
    readers = ("DequantizeLinear", "MatMulInteger")
    read = (value for node in graph.nodes if node.op in readers for value in node.inputs[:2])
    constants = (value.constant for value in dict.fromkeys(read))
    return [constant.name for constant in constants if constant and len(constant.shape) > 1]
