"""ncnn: float16 is off and read back, layers are told, what it lacks is one sentence."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_graphs import gate, product, unknown
from torch import nn

import opdf_compile as opdf
from opdf_compile.cli import environment
from opdf_compile.errors import DeviceError, InputError
from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.runtime.nc import conversion
from opdf_compile.parity.runtime.nc import runtime as runtime_module
from opdf_compile.parity.runtime.nc.net import loaded
from opdf_compile.parity.runtime.protocol import Device, RunFailed
from opdf_compile.parity.runtime.registry import resolve_device

needs_ncnn = pytest.mark.skipif(
    importlib.util.find_spec("ncnn") is None or conversion.tool() is None,
    reason="ncnn and pnnx are not installed; the extra ncnn brings them",
)


@pytest.fixture
def device() -> Device:
    return resolve_device("cpu", "ncnn")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        conv, norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        return nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)).eval()

    folder = tmp_path_factory.mktemp("ncnn") / "bundle"
    opdf.export_onnx(made(1), (torch.randn(2, 3, 8, 8),), folder, reference=made(2))
    return folder


@needs_ncnn
def test_a_right_pair_passes_in_every_part(bundle: Path) -> None:
    report = opdf.verify(bundle, runtime="ncnn", margin=1.0, budget=1)
    assert report.numerics.verdict == "pass"
    assert (report.latency.device, report.latency.provider) == ("cpu", "CPU")
    assert report.structure.optimised is not None
    assert report.structure.optimised.verdict == "same"
    assert report.environment["runtime"]["precision"] == "f32"


@needs_ncnn
def test_float16_is_refuted_and_said_to_be_the_runtimes(bundle: Path) -> None:
    report = opdf.verify(bundle, runtime="ncnn-fp16", only="numerics")
    found = report.numerics
    assert found.verdict == "fail" and report.environment["runtime"]["precision"] == "f16"
    assert found.max_rel_error is not None and 1e-5 < found.max_rel_error < 1e-1
    (note,) = (note for note in found.notes if "ncnn-fp16" in note)
    assert note.startswith("the file is right in onnxruntime ") and "computes it in f16" in note


@needs_ncnn
def test_a_weight_that_is_off_is_refuted(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(bundle / "student.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "student.onnx")
    (tmp_path / "student.check.npz").write_bytes((bundle / "student.check.npz").read_bytes())
    report = opdf.verify(tmp_path / "student.onnx", runtime="ncnn", only="numerics")
    assert report.numerics.verdict == "fail"
    # The default runtime finds it wrong too, so nobody else is blamed.
    assert not any("is right in" in note for note in report.numerics.notes)


@needs_ncnn
def test_sizes_and_threads(device: Device, tmp_path: Path) -> None:
    model = device.runtime.load(product(tmp_path / "m.onnx"), device, threads=1)
    for rows in (1, 5, 2):
        x = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)
        np.testing.assert_array_equal(model({"x": x})["y"], x @ np.ones((4, 3), np.float32))
    x = np.ones((2, 4), np.float32)
    bound = model.bind({"x": x})
    bound.run()
    assert bound.seconds(2) > 0
    for wrong, words in (
        ({}, "no input 'x' was given"),
        ({"x": x[:, :3]}, r"'x' has the shape \(2, 3\)"),
    ):
        with pytest.raises(RunFailed, match=words):
            model(wrong)
    with pytest.raises(InputError, match=r"does not run on the inputs x \[2, 3\]"):
        model.bind({"x": x[:, :3]})


@needs_ncnn
def test_the_gate_is_right(device: Device, tmp_path: Path) -> None:
    model = device.runtime.load(gate(tmp_path / "m.onnx"), device)
    x, z = np.array([[-4, -1, 1, 4], [3, 3, 0, -3]], np.float32)[:, None]
    found = model({"x": x, "z": z})["y"]
    np.testing.assert_allclose(found, x * np.clip(z / 6 + 0.5, 0, 1), rtol=1e-6, atol=1e-7)


@needs_ncnn
def test_the_layers_that_run_are_told(device: Device, tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["h"], ["y"])
    file = product(tmp_path / "m.onnx")
    model = onnx.load(file)
    model.graph.node[0].output[0] = "h"
    model.graph.node.append(node)
    onnx.save(model, file)
    device.runtime.write_graph(file, tmp_path / "told.onnx", device)
    told = onnx.load(tmp_path / "told.onnx").graph
    kinds = [node.op_type for node in told.node]
    assert kinds[0] == "Input" and {node.domain for node in told.node} == {"ncnn"}
    assert len(told.input) == len(told.output) == 1
    plain = product(tmp_path / "plain.onnx")
    device.runtime.write_graph(plain, tmp_path / "other.onnx", device)
    other = onnx.load(tmp_path / "other.onnx").graph
    assert [(n.op_type, n.attribute) for n in other.node] != [
        (n.op_type, n.attribute) for n in told.node
    ]


@needs_ncnn
def test_what_it_does_not_take_is_one_sentence(device: Device, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    with pytest.raises(DeviceError, match=r"pnnx cannot convert .*NoSuchOperator.*give another"):
        device.runtime.load(unknown(file), device)
    with pytest.raises(DeviceError, match="whose input 'x' is float64"):
        device.runtime.load(product(file, TensorProto.DOUBLE), device)
    with pytest.raises(DeviceError, match="without its graph optimisation"):
        device.runtime.load(product(file), device, optimised=False)


@needs_ncnn
def test_a_layer_that_it_does_not_have(tmp_path: Path) -> None:
    text = "7767517\n2 2\nInput in0 0 1 in0\nGather g 1 1 in0 out0 axis=0\n"
    (tmp_path / "layers").write_text(text, encoding="utf-8")
    (tmp_path / "weights").touch()
    file = ModelFile(tmp_path / "m.onnx")
    found = conversion.Converted(file, tmp_path / "layers", tmp_path / "weights", (0,), (0,))
    with pytest.raises(DeviceError, match=r"cannot load .*m.onnx \(it has no layer for Gather\)"):
        loaded(found, half=False, threads=1)


def test_a_missing_piece_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    monkeypatch.setattr(runtime_module, "installed_version", lambda name: None)
    with pytest.raises(DeviceError, match=r"ncnn is not installed; .*ncnn>="):
        resolve_device("auto", "ncnn")
    (line,) = (one for one in environment.examine() if one.name == "--runtime ncnn")
    assert line.level == "note" and "pip install 'ncnn>=" in line.remedy


@needs_ncnn
def test_the_converter_is_a_piece_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_module, "tool", lambda: None)
    with pytest.raises(DeviceError, match="pnnx, which converts ONNX files for ncnn, is not inst"):
        resolve_device("auto", "ncnn")
