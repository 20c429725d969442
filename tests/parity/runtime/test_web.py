"""onnxruntime-web under node: right values, refusals, and what is said where it is missing."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import opdf_compile as opdf
from opdf_compile.cli import environment
from opdf_compile.errors import ArtefactError, DeviceError, InputError
from opdf_compile.parity.request import checked_request
from opdf_compile.parity.runtime.protocol import Device, RunFailed
from opdf_compile.parity.runtime.registry import resolve_device
from opdf_compile.parity.runtime.web import runtime as runtime_module
from opdf_compile.parity.runtime.web.node_process import AnsweredError
from opdf_compile.parity.runtime.web.runtime import FOLDER_VARIABLE, OnnxRuntimeWeb, package_folder

NAME = "onnxruntime-web"
lacking = OnnxRuntimeWeb().missing("wasm")
needs_web = pytest.mark.skipif(
    lacking is not None, reason=lacking.piece if lacking else "it is there"
)


@pytest.fixture
def device() -> Device:
    return resolve_device("auto", NAME)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with integer inputs, and one with other weights."""

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(torch.tanh(self.embed(ids)).mean(1))

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Student().eval()

    folder = tmp_path_factory.mktemp("web") / "bundle"
    opdf.export_onnx(made(1), (torch.randint(11, (4, 5)),), folder, reference=made(2))
    return folder


def echo(path: Path, kind: int, op: str = "Identity", **options: Any) -> Path:
    """y = x, of any rank."""
    ports = [helper.make_tensor_value_info(name, kind, None) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", ports[:1], ports[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=8), path, **options)
    return path


def product(path: Path, **options: Any) -> Path:
    """y = x w with w all ones."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    w = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [w])
    opset = [helper.make_opsetid("", 17)]
    onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=8), path, **options)
    return path


@needs_web
def test_a_right_pair_passes_and_what_is_not_told_is_said(bundle: Path) -> None:
    report = opdf.verify(bundle, runtime=NAME, margin=1.0, budget=1)
    assert (report.numerics.verdict, report.structure.verdict) == ("pass", "pass")
    assert report.structure.optimised is not None
    assert report.structure.optimised.differences == (
        "onnxruntime-web does not tell the graph that it runs",
    )
    assert (report.latency.device, report.latency.provider) == ("wasm", "wasm")
    assert report.latency.reference_ms and report.latency.candidate_ms
    assert report.environment["device"]["provider_options"] == {"numThreads": "1", "simd": "true"}
    assert f"{NAME} {report.environment['versions'][NAME]}" in str(report)


@needs_web
def test_a_weight_that_is_off_is_refuted(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(bundle / "student.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "student.onnx")
    (tmp_path / "student.check.npz").write_bytes((bundle / "student.check.npz").read_bytes())
    report = opdf.verify(tmp_path / "student.onnx", runtime=NAME, only="numerics")
    assert report.numerics.verdict == "fail"


@needs_web
@pytest.mark.parametrize(
    "dtype",
    [
        *("float16", "float32", "float64", "bool", "int8", "int16"),
        *("int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    ],
)
def test_every_type_comes_back_bit_for_bit(dtype: str, device: Device, tmp_path: Path) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = device.runtime.load(echo(tmp_path / "m.onnx", kind), device)
    rng = np.random.default_rng(0)
    for shape in ((), (0, 2), (3, 5)):
        x = np.asarray(rng.integers(0, 100, shape)).astype(dtype)
        if dtype == "int64":
            x = x + (1 << 60)
        found = model({"x": x, "unknown": x})["y"]
        assert found.dtype == x.dtype and found.shape == x.shape
        np.testing.assert_array_equal(found, x)
        found[...] = 0  # An array of the caller's own.


@needs_web
@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.INT4])
def test_types_without_an_array_are_one_sentence(kind: int, device: Device, tmp_path: Path) -> None:
    file = echo(tmp_path / "m.onnx", kind)
    with pytest.raises(DeviceError, match=r"whose input 'x' is .*; export it in float32, or give"):
        device.runtime.load(file, device)


@needs_web
def test_strings_are_one_sentence(device: Device, tmp_path: Path) -> None:
    file = echo(tmp_path / "m.onnx", TensorProto.STRING)
    with pytest.raises(InputError, match="'x' of .* is no tensor of numbers"):
        device.runtime.load(file, device)


@needs_web
def test_external_data_threads_and_unoptimised(device: Device, tmp_path: Path) -> None:
    file = product(tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    for options in ({}, {"threads": 2}, {"optimised": False}):
        model = device.runtime.load(file, device, **options)  # type: ignore[arg-type]
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        np.testing.assert_array_equal(model({"x": x})["y"], x @ np.ones((4, 3), np.float32))
        assert model.bind({"x": x}).seconds(3) > 0
    with pytest.raises(InputError, match="from 1 up"):
        device.runtime.load(file, device, threads=0)


@needs_web
def test_inputs_that_do_not_fit(device: Device, tmp_path: Path) -> None:
    model = device.runtime.load(product(tmp_path / "m.onnx"), device)
    wrong = {"x": np.ones((2, 5), np.float32)}
    with pytest.raises(RunFailed, match="onnxruntime-web cannot run .*Got: 5 Expected: 4") as said:
        model(wrong)
    assert "ERROR_CODE" not in str(said.value) and "\n" not in str(said.value)
    with pytest.raises(InputError, match=r"does not run on the inputs x \[2, 5\] \(.*Expected: 4"):
        model.bind(wrong)
    with pytest.raises(RunFailed, match="input 'x' is missing"):
        model({})
    # It is none the worse for it.
    assert model({"x": np.ones((1, 4), np.float32)})["y"][0, 0] == 4


@needs_web
def test_graphs_that_it_refuses(device: Device, tmp_path: Path) -> None:
    file = echo(tmp_path / "m.onnx", TensorProto.FLOAT, "NoSuchOperator")
    with pytest.raises(ArtefactError, match="cannot load .*NoSuchOperator.*; export it again"):
        device.runtime.load(file, device)
    # There is no kernel for the double of what this is made of.
    file = echo(tmp_path / "m.onnx", TensorProto.DOUBLE, "HardSwish")
    with pytest.raises(DeviceError, match="no kernel for an operator of .*HardSigmoid"):
        device.runtime.load(file, device)


@needs_web
def test_sessions_that_nobody_holds_are_released(device: Device, tmp_path: Path) -> None:
    model = device.runtime.load(product(tmp_path / "m.onnx"), device)
    process = model.process  # type: ignore[attr-defined]
    session = model._session  # type: ignore[attr-defined]
    process.ask("run", {"x": np.ones((1, 4), np.float32)}, session=session, outputs=["y"])
    del model
    gc.collect()
    with pytest.raises(AnsweredError, match="undefined"):
        process.ask("run", session=session, outputs=["y"])


def test_words_and_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeWeb, "missing", lambda self, device: None)
    with pytest.raises(InputError, match="has no device 'gpu'; give auto or wasm"):
        resolve_device("gpu", NAME)
    request = checked_request(
        *("auto", "auto", "no-slower", "warn", 1.0, None, None, None, None), f"{NAME}:wasm"
    )
    # It computes on the CPU.
    assert request.margin == 0.05


@pytest.fixture
def which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Which programs are there, and where npm keeps global packages."""

    def there(*programs: str, root: Path | None = None) -> None:
        found = {name: str(tmp_path / name) for name in programs}
        monkeypatch.setattr(runtime_module.shutil, "which", found.get)
        monkeypatch.setattr(runtime_module, "_global_packages", lambda: root)
        monkeypatch.delenv(FOLDER_VARIABLE, raising=False)

    yield there


def package(folder: Path, name: str = NAME) -> Path:
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": name, "version": "9.8.7"}))
    return folder


def test_what_is_missing_is_named_with_its_command(
    which: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    which()
    with pytest.raises(DeviceError, match=r"node is not installed .*; install Node.js 20 or newer"):
        resolve_device("auto", NAME)
    which("node", root=tmp_path)
    with pytest.raises(DeviceError, match="was not found, .*npm install --global onnxruntime-web"):
        resolve_device("auto", NAME)
    (line,) = (found for found in environment.examine() if found.name == f"--runtime {NAME}")
    assert line.level == "note" and f"{FOLDER_VARIABLE}=DIR" in line.remedy
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(DeviceError, match=rf"was not found in .*gone \({FOLDER_VARIABLE}\)"):
        resolve_device("auto", NAME)


def test_where_the_package_is_found(
    which: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    everywhere = package(tmp_path / "global" / NAME)
    which("node", root=tmp_path / "global")
    assert package_folder() == everywhere and OnnxRuntimeWeb().version() == "9.8.7"
    own = package(tmp_path / "own" / "node_modules" / NAME)
    for named in (tmp_path / "own", own):
        monkeypatch.setenv(FOLDER_VARIABLE, str(named))
        assert package_folder() == own
    other = package(tmp_path / "other", name="left-pad")
    monkeypatch.setenv(FOLDER_VARIABLE, str(other))
    assert package_folder() is None


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_a_package_that_does_not_start_is_told_by_nodes_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(package(tmp_path / NAME)))
    words = r"9.8.7 does not start under node: the node process ended .*Error: Cannot find module"
    with pytest.raises(DeviceError, match=words) as caught:
        resolve_device("auto", NAME)
    assert "npm install --global" in str(caught.value) and "\n" not in str(caught.value)


def test_a_node_that_cannot_be_started_is_one_sentence(
    which: Callable[..., None], tmp_path: Path
) -> None:
    package(tmp_path / NAME)
    (tmp_path / "node").write_text("no program")
    which("node", root=tmp_path)
    with pytest.raises(DeviceError, match="does not start under node: node cannot be started"):
        resolve_device("auto", NAME)
