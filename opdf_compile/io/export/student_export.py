"""A student of an ONNX file, exported: its file with new weights, and evidence for `verify`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.artefacts import CheckData
from opdf_compile.errors import ExportError
from opdf_compile.graph import CallArguments, Dynamic, Traced, trace
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.io.evidence.evaluating import gather_check_data
from opdf_compile.io.evidence.given_rows import Samples, given_rows
from opdf_compile.io.export.calibration import Feed, batches_of
from opdf_compile.io.export.examples import samples_of
from opdf_compile.io.export.student_graph import write_back
from opdf_compile.io.onnx_student.drawn_examples import trace_drawn
from opdf_compile.io.onnx_student.operands import as_tensor
from opdf_compile.io.onnx_student.student import OnnxStudent


def onnx_student_of(model: Any) -> OnnxStudent | None:
    """The ONNX student that a model is or was traced from, or None."""
    if isinstance(model, Traced):
        model = model.source
    if isinstance(model, nn.Module) and isinstance(model, OnnxStudent):
        return model
    return None


def file_and_check(
    student: OnnxStudent,
    inputs: CallArguments,
    dynamic: Dynamic,
    opset: int | None,
    dtype: Any,
    *,
    samples: Samples | None = None,
    calibration: Samples | None = None,
) -> tuple[Any, CheckData, list[Feed]]:
    """The file's message with the student's weights, its check data, its calibration batches.

    Args:
        student: A student, trained or not.
        inputs: Example inputs; none takes an example made from the file's input types.
        dynamic: Which axes keep a free size; None for those of the file.
        opset: Must be None: the file keeps its own.
        dtype: Must be None: the file keeps its own.
        samples: Rows of the user's own, as in `export_onnx`.
        calibration: Rows of the user's data, by the file's input names.

    Raises:
        ExportError: An option asks for another graph than the file's.
    """
    for name, asked in (("opset", opset), ("dtype", dtype)):
        if asked is not None:
            raise ExportError(
                f"{name} {asked} was asked for and {student.source.name} is an ONNX student, which "
                "keeps the graph of its file; leave it out, or export the PyTorch model"
            )
    model = write_back(student)
    axes = student.dynamic if dynamic is None else dynamic
    if any(inputs):
        traced = trace(student, *inputs, dynamic=axes, phases=("eval",))
    else:
        traced = trace_drawn(student, dynamic=axes, phases=("eval",))
    if "eval" not in traced.programs:
        raise ExportError(
            f"torch.export cannot hold {student.source.name} as a graph, which the check data is "
            f"computed with ({'; '.join(traced.notes) or 'no reason given'}); build the number of "
            "an input that steers the graph in: FILE.onnx?NAME=NUMBER"
        )
    names = student.source.inputs
    free = {names[name]: traced.axis_names.get(name, {}) for name in traced.input_names}
    batches = batches_of(traced, calibration, free)
    # The module's names are the file's with other signs in the place of odd ones.
    own = [{name: batch[names[name]] for name in traced.input_names} for batch in batches]
    example, *further = samples_of(traced, own)
    check = gather_check_data(
        traced.programs["eval"],
        example,
        axis_names=free,
        output_names=student.source.output_names,
        dtype=dtype_name(most_numbers((*student.parameters(), *student.buffers()))),
        further=further,
        rows=given_rows(samples, (traced.args, traced.kwargs), free),
    )
    fixed = _fixed(student)
    return model, _with_fixed(check, fixed), [{**batch, **fixed} for batch in batches]


def _fixed(student: OnnxStudent) -> Mapping[str, Any]:
    """The inputs that the student has built in, which the runtime needs."""
    cpu = torch.device("cpu")
    return {n: as_tensor(v, cpu).numpy() for n, v in student.source.fixed.items()}


def _with_fixed(check: CheckData, fixed: Mapping[str, Any]) -> CheckData:
    if not fixed:
        return check
    samples = tuple(
        dataclasses.replace(sample, inputs={**sample.inputs, **fixed}) for sample in check.samples
    )
    return dataclasses.replace(check, input_names=(*check.input_names, *fixed), samples=samples)


def most_numbers(tensors: Iterable[Tensor]) -> torch.dtype:
    """The floating dtype of most numbers, the one that the error is measured in."""
    counts: Counter[torch.dtype] = Counter({torch.float32: 0})
    for tensor in tensors:
        # A float of one byte is stored so and computed in a wider one.
        if tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1:
            counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0]
