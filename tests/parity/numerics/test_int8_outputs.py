"""Outputs of a quantised pair that tell nothing about int8, or that nothing can be measured by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from quantised_pairs import OUT, Weights, qdq, trained, untouched, write
from torch import nn

import opdf_compile as opdf
from opdf_compile.artefacts import check_path, drop_of, read_check, write_check
from opdf_compile.files import sha256
from opdf_compile.parity.numerics.int8_budget import spread_of


def at_zero(bias: float) -> Weights:
    """A student whose head starts at zero, and one with a prior in its bias."""
    made = untouched(seed=3)
    made["last.weight"] = np.zeros_like(made["last.weight"])
    made["last.bias"] = np.full(OUT, bias, np.float32)
    return made


@pytest.mark.parametrize("bias", [0.0, -2.2])
def test_a_reference_whose_output_is_constant_does_not_say_that_int8_costs_nothing(
    tmp_path: Path, bias: float
) -> None:
    """A budget of nothing would refute every deep student, so that nothing is said of a right one.

    What is worse than the mean needs no budget.
    """
    reference = write(tmp_path / "r.onnx", at_zero(bias))
    right = write(tmp_path / "s.onnx", trained(untouched()))
    wrong = write(tmp_path / "w.onnx", trained(untouched()))
    for file in (reference, right, wrong):
        qdq(file)
    report = opdf.verify(right, reference, only="structure,numerics", device="cpu")
    assert report.numerics.verdict == "not_checked" and report.exit_code == 4
    assert "answers the same in every row" in report.numerics.reason
    scale_the_head(wrong, -1.0)
    report = opdf.verify(wrong, reference, only="structure,numerics", device="cpu")
    assert report.numerics.verdict == "fail"
    assert "int8 breaks the candidate" in report.numerics.reason


def scale_the_head(path: Path, factor: float) -> None:
    model = onnx.load(path)
    (scale,) = (t for t in model.graph.initializer if t.name == "last.weight_scale")
    changed = numpy_helper.to_array(scale) * np.float32(factor)
    scale.CopyFrom(numpy_helper.from_array(changed, scale.name))
    onnx.save(model, path)


def renamed(path: Path, name: str) -> None:
    """The file's output y under another name, in its check data too."""
    model = onnx.load(path)
    model.graph.output[0].name = name
    for node in model.graph.node:
        node.output[:] = [name if output == "y" else output for output in node.output]
    onnx.save(model, path)
    data = read_check(check_path(path))
    samples = tuple(
        replace(sample, **{part: {name: getattr(sample, part)["y"]} for part in _BY_OUTPUT})
        for sample in data.samples
    )
    hashed = {"onnx_sha256": sha256(path), "output_dtypes": {name: "float32"}}
    write_check(check_path(path), replace(data, output_names=(name,), samples=samples, **hashed))


_BY_OUTPUT = ("outputs", "error", "rms", "maxabs")


def test_an_output_that_the_reference_does_not_have_is_left_open(tmp_path: Path) -> None:
    """A third of a weight off would pass by the spread of the truth alone."""
    files = write(tmp_path / "s.onnx", untouched()), write(tmp_path / "r.onnx", untouched())
    renamed(files[1], "score")
    for file in files:
        qdq(file)
    scale_the_head(files[0], 0.6)
    report = opdf.verify(*files, only="numerics", device="cpu")
    assert report.numerics.verdict == "not_checked" and report.exit_code != 0
    assert "which does not have it" in report.numerics.reason


class _Detector(nn.Module):
    """Scores that the inputs move, and anchors that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        self.register_buffer("anchors", torch.linspace(-1.1, 2.3, 6))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.body(x), self.anchors.expand(x.shape[0], 6)


def test_an_output_that_the_inputs_do_not_move_is_judged_as_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student, reference = _Detector().eval(), _Detector().eval()
    rows = torch.randn(256, 8).numpy()
    path = tmp_path / "d.onnx"
    opdf.export_onnx(
        student,
        (torch.randn(2, 8),),
        path,
        reference=reference,
        dtype="int8",
        calibrate={"x": rows},
    )
    report = opdf.verify(path, tmp_path / "d.reference.onnx", only="structure,numerics")
    assert report.verdict == "pass", report.numerics.reason
    model = onnx.load(path)
    moved = 0
    for tensor in model.graph.initializer:
        if "anchors" in tensor.name and tensor.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor) * np.float32(1.5)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            moved += 1
    assert moved == 1
    onnx.save(model, path)
    data = read_check(check_path(path))
    write_check(check_path(path), replace(data, onnx_sha256=sha256(path)))
    report = opdf.verify(path, tmp_path / "d.reference.onnx", only="numerics")
    assert report.numerics.verdict == "fail", report.numerics.reason


def test_what_is_no_number_in_both_is_no_error() -> None:
    truth = np.array([[1.0, np.nan, np.inf], [2.0, np.nan, -np.inf]])
    value = truth.astype(np.float32)
    value[0, 0] = 1.5
    found = drop_of("y", [truth], [value])
    assert found.relative_rms == pytest.approx(0.5 / np.sqrt(5.0))
    assert found.truth_rms == pytest.approx(np.sqrt(5.0 / 2.0))
    value[1, 0] = np.nan
    assert drop_of("y", [truth], [value]).relative_rms == np.inf


def test_equal_rows_have_no_spread() -> None:
    """The mean of ten equal numbers is another number: 0.1 is one of those."""
    assert spread_of([np.full((5, 3), 0.1), np.full((5, 3), 0.1)]) == 0.0
    assert spread_of([np.array([[0.0], [2.0]])]) == pytest.approx(np.sqrt(2.0))
