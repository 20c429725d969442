"""Files that spell a free axis as the size -1: free for every command, as it is for the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import opdf_compile as opdf
from opdf_compile.artefacts.interface import declared_axis, read_interface
from opdf_compile.errors import InputError
from opdf_compile.parity.latency.shape_option import declared_inputs


def written(path: Path, batch: int | str | None) -> Path:
    """x @ w, with the batch as it is given; None leaves it unnamed."""
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])
        for name, size in (("x", 8), ("y", 4))
    )
    for value in (x, y):
        axis = value.type.tensor_type.shape.dim[0]
        if isinstance(batch, int):
            axis.dim_value = batch
        elif batch is not None:
            axis.dim_param = batch
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [x],
        [y],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("batch", "axis"), [(-1, ""), (-7, ""), (None, ""), ("n", "n"), (0, 0), (3, 3)]
)
def test_a_negative_size_is_a_free_axis(
    batch: int | str | None, axis: int | str, tmp_path: Path
) -> None:
    path = written(tmp_path / "m.onnx", batch)
    model = onnx.load(path)
    assert declared_axis(model.graph.input[0].type.tensor_type.shape.dim[0]) == axis
    assert read_interface(path).inputs[0].axes == ("x_0" if axis == "" else axis, 8)
    assert declared_inputs(model)[0].axes == (None if axis == "" else axis, 8)


def test_every_command_takes_it(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", -1)
    student = opdf.load_onnx(path)
    opdf.write_check_data(student, path, {"x": np.ones((2, 8), np.float32)})
    assert opdf.verify(path, only="numerics", device="cpu").exit_code == 0
    copy = tmp_path / "copy.onnx"
    traced = opdf.trace(student, (torch.ones(2, 8),), dynamic=student.dynamic, phases=("eval",))
    assert traced.rungs == {"eval": "dynamic"} and traced.axis_names == {"x": {0: "x_0"}}
    opdf.export_onnx(student, (torch.ones(2, 8),), copy)
    assert opdf.verify(copy, path, only="structure,numerics", device="cpu").exit_code == 0


def test_a_size_that_is_fixed_stays_so(tmp_path: Path) -> None:
    fixed, free = written(tmp_path / "3.onnx", 3), written(tmp_path / "free.onnx", -1)
    with pytest.raises(InputError, match=r"shape \(2, 8\).* takes \(3, 8\)"):
        opdf.write_check_data(opdf.load_onnx(fixed), fixed, {"x": np.ones((2, 8), np.float32)})
    report = opdf.verify(free, fixed, only="structure", device="cpu")
    assert report.exit_code == 1
    assert "float32[?, 8]" in str(report) and "float32[3, 8]" in str(report)


def test_it_is_the_same_as_an_axis_without_a_name(tmp_path: Path) -> None:
    files = written(tmp_path / "a.onnx", -1), written(tmp_path / "b.onnx", None)
    assert opdf.verify(*files, only="structure", device="cpu").exit_code == 0
