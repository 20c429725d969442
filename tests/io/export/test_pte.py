"""What is not lowered to ExecuTorch is refused before that; none of it needs ExecuTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_graphs import product

import opdf_compile as opdf
from opdf_compile.errors import ExportError, InputError
from opdf_compile.io.export import exporting
from opdf_compile.io.export.build import build_export
from opdf_compile.io.export.pte import require_one_file
from opdf_compile.io.export.save import SINGLE_FILE_BYTES
from opdf_compile.io.onnx_student.onnx_loading import load_onnx


def test_weights_beside_the_file_are_not_bound_by_its_hash() -> None:
    require_one_file(SINGLE_FILE_BYTES)
    with pytest.raises(ExportError, match=r"2,000,000,001 bytes of weights.*leave executorch out"):
        require_one_file(SINGLE_FILE_BYTES + 1)


def test_an_onnx_student_has_no_program(tmp_path: Path) -> None:
    student = load_onnx(product(tmp_path / "m.onnx"))
    with pytest.raises(ExportError, match=r"is an ONNX student.*export the PyTorch model"):
        build_export(student, (torch.ones(2, 4),), executorch=True)


def test_int8_and_a_package_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, example, file = torch.nn.Linear(6, 3), (torch.ones(2, 6),), tmp_path / "m.onnx"
    with pytest.raises(InputError, match="ExecuTorch and int8 were both asked for"):
        opdf.export_onnx(
            model, example, file, executorch=True, dtype="int8", calibrate={"input": example[0]}
        )

    def missing() -> None:
        raise InputError("executorch is not installed")

    monkeypatch.setattr(exporting, "require_lowering", missing)
    with pytest.raises(InputError, match="executorch is not installed"):
        opdf.export_onnx(model, example, file, executorch=True)
    assert list(tmp_path.iterdir()) == []
