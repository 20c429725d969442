"""Check data for an ONNX file that another tool exported from a torch model.

The truth is the torch model in float64, as at our own export; what is added here is which input and
output of the file belongs to which of the model: by name where the names agree, else by position.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram

from opdf_compile.artefacts import (
    CheckData,
    FoldRecord,
    Interface,
    Sample,
    check_path,
    read_interface,
    write_check,
)
from opdf_compile.errors import InputError
from opdf_compile.files import atomic_write, sha256
from opdf_compile.graph import CallArguments, Traced
from opdf_compile.io.evidence.evaluating import as_array, gather_check_data
from opdf_compile.io.evidence.given_rows import Samples, given_rows
from opdf_compile.io.evidence.half_range import too_large
from opdf_compile.io.export.eval_phase import EXPORT_DTYPES, Exportable, as_traced, tensors_of
from opdf_compile.io.export.foreign_inputs import Arrays, fitted, kind, samples_of
from opdf_compile.io.export.student_export import onnx_student_of
from opdf_compile.io.export.translate import tensor_outputs
from opdf_compile.io.models.from_archive import model_input_names, program_input_names


def write_check_data(
    model: Exportable,
    onnx_path: str | os.PathLike[str],
    inputs: Arrays | Sequence[Arrays] | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    folded: FoldRecord | None = None,
    samples: Samples | None = None,
) -> Path:
    """Write check data for an ONNX file that another tool exported from a torch model.

    Args:
        model: The torch model: a module, a program, or what `load_onnx` returned.
        onnx_path: The file that `verify` will judge.
        inputs: One sample as a mapping from the file's input names to arrays or tensors, several as
            a list of mappings, or an `.npz` file of them: `NAME`, or `NAME@0`, `NAME@1`, ... for
            several samples (a plain `NAME` beside them belongs to all). Further samples are drawn.
        path: Where to write; ``X.check.npz`` beside ``X.onnx`` by default.
        folded: What the file must no longer hold where the other tool folded the model's branches
            (`FoldedModel.record`).
        samples: Rows of your own under the file's input names, as for `export_onnx`.

    Returns:
        The file that was written.

    Raises:
        InputError: Inputs or outputs of file and model do not fit each other.
        ArtefactError: A file cannot be read or written.
        ExportError: The model does not run on the inputs.

    Example:
        >>> opdf.write_check_data(model, "theirs.onnx", {"x": x})  # doctest: +SKIP
    """
    source = Path(onnx_path)
    face = read_interface(source)
    target = check_path(source) if path is None else Path(path)
    examples = [fitted(sample, face, source) for sample in samples_of(inputs, face)]
    names = _input_names(model, face, source)
    calls = [_call(model, sample, names) for sample in examples]
    traced = _traced(model, calls[0], names, face)
    originals = too_large(tensors_of(model), _half_of(model, face))
    data = _gathered(traced, calls, names, face, source, originals, samples)
    with atomic_write(target) as temporary:
        whole = dataclasses.replace(data, onnx_sha256=sha256(source), folded=folded)
        write_check(temporary, whole)
    return target


def _input_names(model: Any, face: Interface, source: Path) -> dict[str, str]:
    """The model's name of each input of the file."""
    student = onnx_student_of(model)
    if student is not None:
        own = {file: name for name, file in student.source.inputs.items()}
        names, takes_any = list(own.values()), False
        if all(port.name in own for port in face.inputs):
            return {port.name: own[port.name] for port in face.inputs}
    elif isinstance(model, Traced):
        names, takes_any = list(model.input_names), False
    else:
        names, _, others = model_input_names(model)
        takes_any = others and not names
    if takes_any or all(port.name in names for port in face.inputs):
        return {port.name: port.name for port in face.inputs}
    if len(face.inputs) > len(names):
        raise InputError(
            f"{source} takes {face.input_words}, the model {', '.join(names) or 'none'}: there are "
            "too few to match them by position; give the model that the file was exported from"
        )
    return {port.name: name for port, name in zip(face.inputs, names, strict=False)}


def _program(model: Any) -> ExportedProgram | None:
    if isinstance(model, Mapping):
        model = model.get("eval") or model["model"]
    return model if isinstance(model, ExportedProgram) else None


def _call(model: Any, sample: Mapping[str, Tensor], names: Mapping[str, str]) -> CallArguments:
    """How the model is called: a module by name, a program as it was exported."""
    given = {names[name]: tensor for name, tensor in sample.items()}
    program = _program(model)
    if program is None:
        return (), given
    order, positional = program_input_names(program)
    args = tuple(given.pop(name) for name in order[:positional] if name in given)
    return args, given


def _traced(model: Any, call: CallArguments, names: Mapping[str, str], face: Interface) -> Traced:
    wanted = _half_of(model, face)
    axes = {names[port.name]: port.axes for port in face.inputs if port.axes is not None}
    dynamic = None if isinstance(model, Traced) or _program(model) is not None else axes
    return as_traced(model, *call, dynamic, wanted)


def _half_of(model: Any, face: Interface) -> torch.dtype | None:
    """A file of half precision is judged by the model in half precision; a student has its own."""
    module = isinstance(model, nn.Module) and onnx_student_of(model) is None
    return EXPORT_DTYPES.get(face.dtype) if module else None


def _gathered(
    traced: Traced,
    calls: Sequence[CallArguments],
    names: Mapping[str, str],
    face: Interface,
    source: Path,
    originals: Mapping[str, Tensor],
    samples: Samples | None,
) -> CheckData:
    program = traced.programs["eval"]
    files = {mine: theirs for theirs, mine in names.items()}
    unknown = [name for name in traced.input_names if name not in files]
    if unknown:
        raise InputError(
            f"the model also takes {unknown[0]!r}, {source} only {face.input_words}; give the "
            "model that the file was exported from"
        )
    outputs = _output_names(traced, face, source)
    axis_names = {files[name]: traced.axis_names.get(name, {}) for name in traced.input_names}
    example = (traced.args, traced.kwargs)
    data = gather_check_data(
        program,
        example,
        axis_names=axis_names,
        output_names=outputs,
        dtype=face.dtype,
        further=[_as_floats(call, traced) for call in calls[1:]],
        rows=given_rows(samples, example, axis_names),
        originals=originals,
        foreign=True,
    )
    found = tuple(_in_file(sample, face, data, source) for sample in data.samples)
    return dataclasses.replace(
        data,
        input_names=tuple(port.name for port in face.inputs),
        output_names=tuple(port.name for port in face.outputs),
        samples=found,
        output_dtypes={port.name: port.dtype for port in face.outputs},
    )


def _as_floats(call: CallArguments, traced: Traced) -> CallArguments:
    """Further samples in the dtypes in which the first one was traced."""
    first = pytree.tree_leaves((traced.args, traced.kwargs))
    leaves, spec = pytree.tree_flatten(call)
    cast = [leaf.to(like.dtype) for leaf, like in zip(leaves, first, strict=True)]
    args, kwargs = pytree.tree_unflatten(cast, spec)
    return args, kwargs


def _output_names(traced: Traced, face: Interface, source: Path) -> list[str]:
    """The file's name of each tensor that the model returns; its own where the file has none."""
    own = tensor_outputs(traced.programs["eval"], traced.output_names)
    wanted = [port.name for port in face.outputs]
    if set(wanted) <= set(own):
        return own
    if len(wanted) == len(own):
        return wanted
    raise InputError(
        f"{source} returns {', '.join(wanted)}, the model {', '.join(own)}: neither names nor "
        "number agree; give the model that the file was exported from"
    )


def _in_file(sample: Sample, face: Interface, data: CheckData, source: Path) -> Sample:
    """A sample in the file's dtypes, with the file's outputs only, which must fit."""
    for port in face.outputs:
        array = np.asarray(sample.outputs[port.name])
        wrong = port.misfit(array.shape)
        made = data.output_dtypes[port.name]
        wanted = kind(getattr(torch, port.dtype))
        if kind(getattr(torch, made)) != wanted or (wanted == "integer" and made != port.dtype):
            wrong = wrong or f"dtype {made}"
        if wrong:
            raise InputError(
                f"the output {port.name!r} of the model has {wrong}, that of {source} is {port}; "
                "give the model that the file was exported from"
            )
    inputs = {
        port.name: as_array(_tensor(sample.inputs[port.name]).to(getattr(torch, port.dtype)))
        for port in face.inputs
    }

    def kept(table: Mapping[str, Any]) -> dict[str, Any]:
        return {port.name: table[port.name] for port in face.outputs if port.name in table}

    return Sample(
        inputs=inputs,
        outputs=kept(sample.outputs),
        error=kept(sample.error),
        rms=kept(sample.rms),
        maxabs=kept(sample.maxabs),
        function=kept(sample.function),
        computed=kept(sample.computed),
        labels=sample.labels,
    )


def _tensor(array: Any) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(np.asarray(array))
