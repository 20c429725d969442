"""A folded state -> the ONNX file of its student, with new weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from opdf_compile.errors import FoldError
from opdf_compile.graph import recorded_inputs
from opdf_compile.io.export.build import Export
from opdf_compile.io.export.bundling import write_file
from opdf_compile.io.export.student_export import file_and_check
from opdf_compile.io.onnx_student.student import OnnxStudent
from opdf_compile.io.saved.expanded_file import FoldedFile


def save_onnx(folded: FoldedFile, student: nn.Module | None, path: Path) -> None:
    """Write the student's file with folded weights, and its check data beside it.

    Args:
        folded: What `fold_file` returned for this student.
        student: The student; its weights are replaced.
        path: An `.onnx` path.

    Raises:
        FoldError: The student is missing, or does not come from an ONNX file.
    """
    if not isinstance(student, OnnxStudent):
        found = "no --model" if student is None else f"a {type(student).__name__}"
        raise FoldError(
            f"{path} is written from the ONNX file of the student, found {found}; give "
            "--model STUDENT.onnx, or fold to .pt2 and use opdf-compile export"
        )
    state = dict(student.named_parameters()) | dict(student.named_buffers())
    with torch.no_grad():
        for key, tensor in state.items():
            tensor.copy_(folded.state[key])
    program = folded.programs.get("eval")
    inputs = ((), {}) if program is None else recorded_inputs(program)
    model, check, _ = file_and_check(student, inputs, None, None, None)
    write_file(path, Export(model, check))
