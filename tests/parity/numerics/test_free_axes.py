"""A file that declares a free axis and stops at some size of it is refuted; bad input stays so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import opdf_compile as opdf
from opdf_compile.artefacts.check_file import check_path, read_check, write_check
from opdf_compile.artefacts.interface import read_interface
from opdf_compile.errors import ArtefactError, DeviceError
from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.numerics.evidence import Evidence
from opdf_compile.parity.numerics.free_axes import stop_of
from opdf_compile.parity.runtime.ort.array_session import ArraySession
from opdf_compile.parity.runtime.protocol import RunFailed
from opdf_compile.parity.runtime.registry import resolve_device

CPU = resolve_device("cpu")


def pooled() -> nn.Module:
    """Takes every length; at length 4 the pooling does nothing."""
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(12, 4)).eval()


def without_pool(path: Path, model: nn.Module, axes: list[Any]) -> Path:
    """What an exporter writes that translates the pooling for the size of its example."""
    linear = model.get_submodule("2")
    weights = [
        numpy_helper.from_array(getattr(linear, name).detach().numpy(), name)
        for name in ("weight", "bias")
    ]
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["y"], name="head", transB=1),
    ]
    x = helper.make_tensor_value_info("input", TensorProto.FLOAT, axes)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [axes[0], 4])
    graph = helper.make_graph(nodes, "pooled", [x], [y], weights)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def checked(folder: Path, axes: list[Any], length: int = 4) -> Path:
    model = pooled()
    path = without_pool(folder / "m.onnx", model, axes)
    x = np.random.default_rng(0).normal(size=(2, 3, length)).astype(np.float32)
    opdf.write_check_data(model, path, {"input": x})
    return path


def test_the_axis_and_its_size_are_named(tmp_path: Path) -> None:
    path = checked(tmp_path, ["n", 3, "length"])
    report = opdf.verify(path, only="numerics", device="cpu")
    assert report.exit_code == 1 and report.numerics.verdict == "fail"
    reason = report.numerics.reason
    assert "'y': is not computed where axis 2 of 'input' (length) is " in reason
    assert "axis 0" not in reason and "Gemm node" in reason and "[ONNXRuntimeError]" not in reason


@pytest.mark.parametrize("axes", [["n", 3, 4], [2, 3, 4]])
def test_the_same_file_that_says_its_size_passes(axes: list[Any], tmp_path: Path) -> None:
    assert opdf.verify(checked(tmp_path, axes), only="numerics", device="cpu").exit_code == 0


def test_where_no_sample_runs_every_free_axis_is_named(tmp_path: Path) -> None:
    path = checked(tmp_path, ["n", 3, "length"], length=8)
    check = read_check(check_path(path))
    long = [sample for sample in check.samples if sample.inputs["input"].shape[2] != 4]
    write_check(check_path(path), dataclasses.replace(check, samples=tuple(long)))
    reason = opdf.verify(path, only="numerics", device="cpu").numerics.reason
    assert "axis 0 of 'input' (n) is 2" in reason and "axis 2 of 'input' (length) is 8" in reason


def test_a_reference_that_stops_refutes_nobody(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    files = checked(tmp_path / "good", ["n", 3, 4]), checked(tmp_path / "bad", ["n", 3, "length"])
    assert opdf.verify(*files, only="numerics", device="cpu").numerics.verdict == "pass"
    assert opdf.verify(*files[::-1], only="numerics", device="cpu").numerics.verdict == "fail"


def test_check_data_of_another_shape_is_bad_input(tmp_path: Path) -> None:
    path = checked(tmp_path, ["n", 3, 4])
    check = read_check(check_path(path))
    wrong = dataclasses.replace(check.samples[0], inputs={"input": np.zeros((2, 3, 5), "float32")})
    write_check(check_path(path), dataclasses.replace(check, samples=(wrong, *check.samples[1:])))
    with pytest.raises(ArtefactError, match=r"does not fit .*shape \(2, 3, 5\).*check-data"):
        opdf.verify(path, only="numerics", device="cpu")


def failures(path: Path, words: str) -> tuple[Evidence, dict[int, RunFailed]]:
    evidence = Evidence(ModelFile(path), check_path(path), read_check(check_path(path)))
    sizes = [sample.inputs["input"].shape[2] for sample in evidence.data.samples]
    error = RunFailed("onnxruntime", path, RuntimeError(words))
    return evidence, {index: error for index, size in enumerate(sizes) if size != 4}


@pytest.mark.parametrize(
    ("axes", "words", "told"),
    [
        (["n", 3, "length"], "Dimension mismatch", True),
        (["n", 3, "length"], "Failed to allocate memory for requested buffer", False),
        (["n", 3, "length"], "CUDA failure 2: out of memory", False),
    ],
)
def test_memory_that_ran_out_is_no_fault_of_the_file(
    axes: list[Any], words: str, told: bool, tmp_path: Path
) -> None:
    path = checked(tmp_path, axes)
    evidence, stopped = failures(path, words)
    ports = read_interface(path).inputs
    found = stop_of(ArraySession(path, CPU), ports, evidence.data.samples, stopped)
    assert stopped and (found is not None) == told


def test_a_file_without_a_free_axis_that_does_not_run_is_the_devices(tmp_path: Path) -> None:
    path = checked(tmp_path, [2, 3, 4])
    samples = read_check(check_path(path)).samples
    error = {0: RunFailed("onnxruntime", path, RuntimeError("Dimension mismatch"))}
    assert stop_of(ArraySession(path, CPU), read_interface(path).inputs, samples, error) is None
    with pytest.raises(DeviceError, match="onnxruntime cannot run"):
        ArraySession(path, CPU)({"input": np.zeros((2, 3, 5), np.float32)})
