"""OpenVINO: right pairs pass, wrong ones do not, and what it cannot judge is one sentence."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import opdf_compile as opdf
from opdf_compile.artefacts import read_onnx
from opdf_compile.cli import environment
from opdf_compile.errors import ArtefactError, DeviceError, InputError
from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.runtime.ov import runtime as runtime_module
from opdf_compile.parity.runtime.ov.compiled import CompiledFile
from opdf_compile.parity.runtime.protocol import Device, RunFailed
from opdf_compile.parity.runtime.registry import resolve_device
from opdf_compile.parity.structure.compare import compare_models

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="openvino is not installed; the extra openvino brings it",
)


@pytest.fixture(scope="module")
def device() -> Device:
    return resolve_device("cpu", "openvino")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional student and one with other weights, the batch free."""

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        conv, norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        return nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)).eval()

    folder = tmp_path_factory.mktemp("openvino") / "bundle"
    opdf.export_onnx(made(1), (torch.randn(2, 3, 8, 8),), folder, reference=made(2))
    return folder


@pytest.fixture
def student(bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the student that was changed, its evidence beside it."""

    def copy(change: Callable[[onnx.ModelProto], None]) -> Path:
        model = onnx.load(bundle / "student.onnx")
        change(model)
        onnx.save(model, tmp_path / "student.onnx")
        evidence = (bundle / "student.check.npz").read_bytes()
        (tmp_path / "student.check.npz").write_bytes(evidence)
        return tmp_path / "student.onnx"

    return copy


def one_weight_off(model: onnx.ModelProto) -> None:
    weight = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(weight).copy()
    values *= np.float32(1.01)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def another_activation(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"


def product(path: Path, kind: int, rows: int | str = "n", **options: Any) -> Path:
    """y = x w with w all ones."""
    x = helper.make_tensor_value_info("x", kind, [rows, 4])
    y = helper.make_tensor_value_info("y", kind, [rows, 3])
    ones = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    if kind != TensorProto.FLOAT:
        ones = helper.make_tensor("w", kind, [4, 3], [1.0] * 12)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [ones]
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=8), path, **options)
    return path


@needs_openvino
def test_a_right_pair_passes_in_every_part(bundle: Path) -> None:
    report = opdf.verify(bundle, runtime="openvino", device="cpu", margin=1.0, budget=1)
    assert report.numerics.verdict == "pass"
    assert report.structure.optimised is not None
    assert report.structure.optimised.verdict == "same"
    assert report.structure.optimised.nodes and report.structure.optimised.provider == "CPU"
    assert (report.latency.device, report.latency.provider) == ("cpu", "CPU")
    assert report.latency.verdict == "pass"
    assert report.environment["runtime"]["precision"] == "f32"
    assert f"openvino {report.environment['versions']['openvino']}, computing in f32" in str(report)
    assert "--runtime openvino:cpu" in report_page_command(report)


def report_page_command(report: opdf.ParityReport) -> str:
    from opdf_compile.parity.report.findings import verify_command

    return verify_command(report)


@needs_openvino
def test_a_weight_that_is_off_is_refuted(student: Callable[..., Path]) -> None:
    wrong = student(one_weight_off)
    report = opdf.verify(wrong, runtime="openvino:cpu", only="numerics")
    assert report.numerics.verdict == "fail"


@needs_openvino
def test_the_graphs_that_run_are_compared(
    bundle: Path, student: Callable[..., Path], device: Device, tmp_path: Path
) -> None:
    right = bundle / "student.onnx"
    renamed = read_onnx(right)
    for number, node in enumerate(renamed.graph.node):
        node.name = f"other{number}"
    (tmp_path / "renamed.file.onnx").write_bytes(renamed.SerializeToString())
    files = {
        "right": right,
        "renamed": tmp_path / "renamed.file.onnx",
        "wrong": student(another_activation),
    }
    graphs = {}
    for name, file in files.items():
        device.runtime.write_graph(file, tmp_path / f"{name}.onnx", device)
        graphs[name] = read_onnx(tmp_path / f"{name}.onnx")
    assert compare_models(graphs["right"], graphs["renamed"]).verdict == "pass"
    assert compare_models(graphs["right"], graphs["wrong"]).verdict == "fail"


@needs_openvino
@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_types_that_it_cannot_judge_are_one_sentence(
    kind: int, device: Device, tmp_path: Path
) -> None:
    file = product(tmp_path / "m.onnx", kind)
    with pytest.raises(DeviceError, match=r"whose input 'x' is .*; export it in float32, or give"):
        device.runtime.load(file, device)


@needs_openvino
def test_an_input_that_is_not_given_is_not_that_of_the_call_before(
    device: Device, tmp_path: Path
) -> None:
    model = device.runtime.load(product(tmp_path / "m.onnx", TensorProto.FLOAT), device)
    model({"x": np.ones((1, 4), np.float32)})
    with pytest.raises(RunFailed, match="no input 'x' was given"):
        model({})


@needs_openvino
def test_float16_is_computed_in_float32(device: Device, tmp_path: Path) -> None:
    model = device.runtime.load(product(tmp_path / "m.onnx", TensorProto.FLOAT16), device)
    # 2048 + 1 is no float16: a sum that is rounded on its way stays 2048.
    x = np.array([[2048, 1, 1, 0]], np.float16)
    assert model.precision == "f32"
    found = model({"x": x})["y"]
    assert found.dtype == np.float16 and found[0, 0] == 2050


@needs_openvino
def test_external_data_threads_and_sizes(device: Device, tmp_path: Path) -> None:
    file = product(
        tmp_path / "m.onnx", TensorProto.FLOAT, save_as_external_data=True, size_threshold=0
    )
    model = device.runtime.load(file, device, threads=1)
    assert model._compiled.get_property("INFERENCE_NUM_THREADS") == 1  # type: ignore[attr-defined]
    for rows in (1, 5, 0):
        x = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)
        np.testing.assert_array_equal(model({"x": x})["y"], x @ np.ones((4, 3), np.float32))
    with pytest.raises(InputError, match="from 1 up"):
        device.runtime.load(file, device, threads=0)


@needs_openvino
def test_what_was_returned_is_not_written_over(device: Device, tmp_path: Path) -> None:
    model = device.runtime.load(product(tmp_path / "m.onnx", TensorProto.FLOAT), device)
    first = model({"x": np.ones((1, 4), np.float32)})["y"]
    model({"x": np.zeros((1, 4), np.float32)})
    assert first[0, 0] == 4


@needs_openvino
def test_inputs_that_do_not_fit(device: Device, tmp_path: Path) -> None:
    model = device.runtime.load(product(tmp_path / "m.onnx", TensorProto.FLOAT), device)
    wrong = {"x": np.ones((2, 5), np.float32)}
    with pytest.raises(RunFailed, match="openvino cannot run .*incompatible") as caught:
        model(wrong)
    assert "src/" not in str(caught.value) and not caught.value.of_memory
    with pytest.raises(InputError, match=r"does not run on the inputs x \[2, 5\] \(.*incompatible"):
        model.bind(wrong)


@needs_openvino
def test_a_graph_that_it_refuses(device: Device, tmp_path: Path) -> None:
    file = product(tmp_path / "m.onnx", TensorProto.FLOAT)
    model = onnx.load(file)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, file)
    with pytest.raises((ArtefactError, DeviceError), match="NoSuchOperator") as caught:
        device.runtime.load(file, device)
    assert "\n" not in str(caught.value)
    file.write_bytes(b"\x08\x07")
    with pytest.raises(ArtefactError, match="no graph"):
        device.runtime.load(file, device)


@needs_openvino
def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_module, "_core", lambda: SimpleNamespace(available_devices=["CPU"]))
    with pytest.raises(DeviceError, match=r"openvino:gpu was asked for but OpenVINO shows no GPU"):
        resolve_device("auto", "openvino:gpu")
    assert resolve_device("auto", "openvino").chosen_because.startswith("auto: OpenVINO shows no")
    with pytest.raises(InputError, match="has no device 'cuda'; give auto or one of cpu, gpu"):
        resolve_device("cuda", "openvino")
    two = SimpleNamespace(available_devices=["CPU", "GPU.0", "GPU.1"])
    monkeypatch.setattr(runtime_module, "_core", lambda: two)
    assert resolve_device("auto", "openvino").provider == "GPU"


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(runtime_module, "installed_version", lambda name: None)
    runtime_module._core.cache_clear()
    yield
    runtime_module._core.cache_clear()


@pytest.mark.usefixtures("absent")
def test_a_package_that_is_not_installed_names_the_extra() -> None:
    with pytest.raises(DeviceError, match=r"openvino is not installed; .*openvino>="):
        resolve_device("auto", "openvino")
    (line,) = (found for found in environment.examine() if found.name == "--runtime openvino")
    assert line.level == "note" and "pip install 'openvino>=" in line.remedy


class Told:
    """A compiled model that was asked for f32 and says what it did instead."""

    def __init__(self, hint: str, *operations: str) -> None:
        self.hint, self.operations = hint, operations

    def get_property(self, name: str) -> Any:
        return SimpleNamespace(get_type_name=lambda: self.hint)

    def get_runtime_model(self) -> Any:
        nodes = [
            SimpleNamespace(
                get_type_name=lambda: "ExecutionNode",
                get_rt_info=lambda told=told: dict(
                    zip(("layerType", "runtimePrecision"), told.split(), strict=True)
                ),
            )
            for told in self.operations
        ]
        return SimpleNamespace(get_ordered_ops=lambda: nodes)


@pytest.mark.parametrize(
    ("told", "precision"),
    [
        (Told("f32", "Input f16", "Convert f16", "MatMul f32", "TopK i32"), "f32"),
        (Told("bf16", "MatMul bf16"), "bf16"),
        (Told("f32", "MatMul f32", "Add bf16", "Relu bf16"), "f32, but bf16 in 2 of 3 operations"),
    ],
)
def test_precision_is_what_the_operations_have(told: Told, precision: str, tmp_path: Path) -> None:
    file = ModelFile(product(tmp_path / "m.onnx", TensorProto.FLOAT))
    assert CompiledFile(file, told, on_cpu=True).precision == precision
