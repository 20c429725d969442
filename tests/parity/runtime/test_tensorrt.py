"""TensorRT on pretended machines: what is missing, what is pinned, what is left to CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from gpu_machine import Machine, pretend
from onnx import TensorProto, helper, numpy_helper

from opdf_compile.cli import environment
from opdf_compile.errors import DeviceError
from opdf_compile.parity.latency import memory
from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.request import checked_request
from opdf_compile.parity.runtime.ort import array_session, cuda, sessions, tensorrt
from opdf_compile.parity.runtime.ort.tensorrt import PROVIDER, fallback_of, missing_for_tensorrt
from opdf_compile.parity.runtime.protocol import Device
from opdf_compile.parity.runtime.registry import resolve_device

TF32 = "NVIDIA_TF32_OVERRIDE"
EVERY = (PROVIDER, "CUDAExecutionProvider", "CPUExecutionProvider")


def forget() -> None:
    cuda.missing_for_cuda.cache_clear()
    missing_for_tensorrt.cache_clear()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A GPU with all that TensorRT needs; the process's own switch for TF32 is left alone."""
    whole = pretend(monkeypatch)
    whole.providers = whole.session_providers = EVERY
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != TF32})
    forget()
    yield whole
    forget()


def refused() -> tuple[str, str]:
    with pytest.raises(DeviceError, match="onnxruntime:tensorrt was asked for but") as caught:
        resolve_device("auto", "onnxruntime:tensorrt")
    missing = missing_for_tensorrt()
    assert missing is not None and missing.piece in str(caught.value)
    assert "\n" not in str(caught.value)
    return missing.piece, missing.remedy


def saved(path: Path, value: float, **options: Any) -> ModelFile:
    """y = x w, the names always the same."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    w = numpy_helper.from_array(np.full((4, 3), value, np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [w])
    opset = [helper.make_opsetid("", 17)]
    onnx.save_model(helper.make_model(graph, opset_imports=opset, ir_version=8), path, **options)
    return ModelFile(path)


@pytest.fixture
def device(machine: Machine) -> Device:
    return resolve_device("auto", "onnxruntime:tensorrt")


def test_a_whole_machine_computes_in_float32_and_records_it(
    machine: Machine, device: Device
) -> None:
    assert (device.name, device.provider, device.precision) == ("tensorrt", PROVIDER, "float32")
    assert {device.provider_options[name] for name in ("trt_fp16_enable", "trt_int8_enable")} == {
        "0"
    }
    assert os.environ[TF32] == "0"
    assert machine.asked[-1] == [(PROVIDER, {"device_id": "0"})]


@pytest.mark.usefixtures("machine")
def test_auto_never_takes_it_and_its_margin_is_an_accelerators() -> None:
    assert resolve_device("auto").name == "cuda"
    request = checked_request(
        *("auto", "auto", "no-slower", "warn", 1.0, None, None, None, None),
        "onnxruntime:tensorrt",
    )
    assert request.margin == 0.02


def test_what_cuda_lacks_comes_first(machine: Machine) -> None:
    machine.driver = None
    assert "no NVIDIA driver" in refused()[0]


def test_a_runtime_built_without_it(machine: Machine) -> None:
    machine.providers = EVERY[1:]
    piece, remedy = refused()
    assert (
        "built without TensorRT" in piece and "install --force-reinstall onnxruntime-gpu" in remedy
    )


def test_tf32_that_was_switched_on(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, TF32, "1")
    piece, remedy = refused()
    assert f"{TF32} is '1'" in piece and f"unset {TF32}" in remedy


def test_libraries_that_are_missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.session_providers = EVERY[1:]
    monkeypatch.setattr(tensorrt, "installed_with_pip", lambda *names: "11.1")
    piece, remedy = refused()
    assert "a library is missing or does not fit; the installed one is TensorRT 11.1" in piece
    assert "pip install 'tensorrt-cu13==10.*'" in remedy


def test_libraries_that_the_runtime_refuses(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "missing_for_cuda", lambda: None)
    machine.refuses = "Please install TensorRT libraries as mentioned"
    piece, remedy = refused()
    assert "cannot start (Please install TensorRT libraries" in piece and "tensorrt-cu13" in remedy


def test_doctor_tells_it_apart_from_cuda(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "installed_version", lambda name: name in machine.packages)
    machine.providers = EVERY[1:]
    found = {line.name: line for line in environment._accelerators()}
    assert found["--device cuda"].level == "ok"
    assert found["--runtime onnxruntime:tensorrt"].level == "note"
    assert "built without TensorRT" in found["--runtime onnxruntime:tensorrt"].found


def test_engines_of_two_students_are_kept_apart_and_timings_shared(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    ours, theirs = (saved(tmp_path / name / "m.onnx", at) for at, name in enumerate("ab"))
    first, second = tensorrt.options_for(ours), tensorrt.options_for(theirs)
    assert first["trt_engine_cache_path"] != second["trt_engine_cache_path"]
    assert first["trt_timing_cache_path"] == second["trt_timing_cache_path"]
    assert tensorrt.options_for(ModelFile(ours.path)) == first
    assert Path(first["trt_engine_cache_path"]).is_dir()
    rewritten = saved(ours.path, 2.0)
    assert tensorrt.options_for(rewritten) != first


def test_an_engine_is_not_that_of_other_external_data(tmp_path: Path) -> None:
    outside = {"save_as_external_data": True, "size_threshold": 0, "location": "m.data"}
    before = tensorrt.stamp_of(saved(tmp_path / "m.onnx", 1.0, **outside))
    weights = tmp_path / "m.data"
    weights.write_bytes(np.full((4, 3), 2.0, np.float32).tobytes())
    os.utime(weights, ns=(1, 1))
    assert tensorrt.stamp_of(ModelFile(tmp_path / "m.onnx")) != before


class Session:
    """What a session says of itself."""

    def __init__(self, *placed: tuple[str, str], options: dict[str, str] | None = None) -> None:
        self._placed, self._options = placed, options or {}

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=p, get_nodes=lambda k=k: [SimpleNamespace(op_type=k)])
            for p, k in self._placed
        ]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {PROVIDER: self._options}

    def get_inputs(self) -> list[Any]:
        return []

    get_outputs = get_inputs


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    return saved(tmp_path / "m.onnx", 1.0)


def test_what_is_left_to_others_is_told(model: ModelFile) -> None:
    whole = Session((PROVIDER, "Conv"), (PROVIDER, "Relu"))
    assert fallback_of(whole, model) == ""
    parted = Session(
        *((PROVIDER, "Conv"), ("CPUExecutionProvider", "Shape")),
        *(("CUDAExecutionProvider", "NonZero"), ("CUDAExecutionProvider", "NonZero")),
    )
    assert fallback_of(parted, model) == (
        "of 4 operators 1 on CPUExecutionProvider (Shape) and 2 on CUDAExecutionProvider (NonZero)"
    )
    with pytest.raises(DeviceError, match=r"takes no operator of .*m.onnx.*give --device cuda"):
        fallback_of(Session(("CUDAExecutionProvider", "Conv")), model)
    assert "does not tell" in fallback_of(object(), model)


def test_the_precision_is_read_back() -> None:
    assert tensorrt.precision_in_force(Session(options={"trt_fp16_enable": "0"})) == "float32"
    ignored = Session(options={"trt_fp16_enable": "1", "trt_bf16_enable": "1"})
    assert tensorrt.precision_in_force(ignored) == "float32, but fp16 and bf16 allowed"


def test_a_session_is_asked_for_with_its_caches_and_cuda_behind_it(
    machine: Machine, device: Device, model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Session((PROVIDER, "MatMul"), ("CUDAExecutionProvider", "NonZero"))
    monkeypatch.setattr(array_session, "open_session", lambda *a, **k: opened)
    loaded = device.runtime.load(model, device)
    assert "1 on CUDAExecutionProvider (NonZero)" in loaded.fallback  # type: ignore[attr-defined]
    assert (loaded.precision, loaded.on_cpu) == ("float32", False)
    asked: list[Any] = list(sessions._providers(model, device))
    (first, options), (second, _), third = asked
    assert (first, second, third) == EVERY
    assert options["trt_engine_cache_path"] and options["trt_engine_cache_enable"] == "1"


def test_what_it_does_not_tell(device: Device, model: ModelFile, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="does not tell what runs"):
        device.runtime.write_graph(model, tmp_path / "out.onnx", device)
    with pytest.raises(DeviceError, match="without its graph optimisation"):
        device.runtime.load(model, device, optimised=False)


def test_its_memory_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter((10, 30))
    monkeypatch.setattr(memory, "_device_used", lambda: next(used))
    with memory.growth("tensorrt") as grown:
        pass
    assert grown.bytes == 20
