"""Each piece that CUDA needs is named where it is missing; a faked driver and runtime stand in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gpu_machine import Driver, Machine, pretend

from opdf_compile.errors import DeviceError
from opdf_compile.parity.runtime.ort import cuda
from opdf_compile.parity.runtime.ort.cuda import OPTIONS, PROVIDER, missing_for_cuda
from opdf_compile.parity.runtime.registry import resolve_device


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    missing_for_cuda.cache_clear()
    yield pretend(monkeypatch)
    missing_for_cuda.cache_clear()


def refused() -> tuple[str, str]:
    """The sentence of `--device cuda` and what doctor says to do."""
    with pytest.raises(DeviceError) as caught:
        resolve_device("cuda")
    missing = missing_for_cuda()
    assert missing is not None
    assert missing.piece in str(caught.value)
    assert "`opdf-compile doctor`" in str(caught.value)
    assert "\n" not in str(caught.value)
    return missing.piece, missing.remedy


def test_a_whole_machine_gets_the_pinned_options(machine: Machine) -> None:
    device = resolve_device("auto")
    assert (device.name, device.provider) == ("cuda", PROVIDER)
    assert dict(device.provider_options) == OPTIONS
    assert device.provider_options["use_tf32"] == "0"
    assert device.provider_options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert machine.asked == [[(PROVIDER, OPTIONS)]]


def test_the_cpu_package(machine: Machine) -> None:
    machine.providers, machine.packages = ("CPUExecutionProvider",), ("onnxruntime",)
    piece, remedy = refused()
    assert "it is the CPU package" in piece
    assert "uninstall -y onnxruntime && " in remedy and "install onnxruntime-gpu" in remedy


def test_two_packages_that_overwrite_each_other(machine: Machine) -> None:
    machine.providers = ("CPUExecutionProvider",)
    machine.packages = ("onnxruntime", "onnxruntime-gpu")
    piece, remedy = refused()
    assert "overwrite each other" in piece
    assert "uninstall -y onnxruntime onnxruntime-gpu && " in remedy


def test_no_driver(machine: Machine) -> None:
    machine.driver = None
    piece, remedy = refused()
    assert "no NVIDIA driver was found" in piece
    assert "--gpus all" in remedy


@pytest.mark.parametrize("driver", [Driver(init=100), Driver(gpus=0)])
def test_a_driver_without_a_gpu(
    machine: Machine, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.driver = driver
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    piece, remedy = refused()
    assert "shows no GPU" in piece and "CUDA_VISIBLE_DEVICES is '-1'" in piece
    assert "nvidia-smi" in remedy


def test_a_driver_that_is_too_old(machine: Machine) -> None:
    machine.driver = Driver(version=12040)
    piece, remedy = refused()
    assert "supports CUDA 12.4" in piece and "built for CUDA 13.0" in piece
    assert "newer NVIDIA driver" in remedy


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Failed to load libcudnn.so.9: cannot open", "the cuDNN library libcudnn.so.9"),
        ("Failed to load libcublasLt.so.13: cannot open", "the CUDA library libcublasLt.so.13"),
        ("", "a CUDA or cuDNN library"),
    ],
)
def test_a_library_that_is_missing(machine: Machine, said: str, words: str) -> None:
    machine.session_providers, machine.said = ("CPUExecutionProvider",), said
    piece, remedy = refused()
    assert words in piece and "libraries are" not in piece
    assert "onnxruntime-gpu[cuda,cudnn]" in remedy


def test_libraries_of_another_cuda_version(machine: Machine) -> None:
    machine.session_providers, machine.libraries = ("CPUExecutionProvider",), "12.8"
    piece, _ = refused()
    assert "CUDA 13.0, the installed libraries are those of CUDA 12.8" in piece


def test_a_provider_that_does_not_start(machine: Machine) -> None:
    machine.refuses = "[ONNXRuntimeError] : 6 : CUDA failure 2:\n out of memory"
    piece, remedy = refused()
    assert "cannot start (CUDA failure 2: out of memory)" in piece
    assert "free memory" in remedy


def test_the_installed_libraries_tell_their_version(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"nvidia-cuda-runtime-cu12": "12.8.90"}
    monkeypatch.setattr(cuda, "installed_version", found.get)
    assert cuda._brought_cuda() == "12.8.90"
    found.clear()
    assert cuda._brought_cuda() is None
