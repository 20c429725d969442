"""A pretended machine with an NVIDIA GPU: a driver and a runtime, whole unless a piece is taken."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from opdf_compile.parity.runtime.ort import cuda
from opdf_compile.parity.runtime.ort.cuda import PROVIDER


@dataclass
class Driver:
    """libcuda with the calls that the probe makes."""

    init: int = 0
    gpus: int = 1
    version: int = 13000

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's own name
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self.gpus
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        ctypes.cast(version, ctypes.POINTER(ctypes.c_int))[0] = self.version
        return 0


@dataclass
class Machine:
    """A pretended installation; a whole one unless a test takes a piece away."""

    driver: Driver | None = field(default_factory=Driver)
    providers: tuple[str, ...] = (PROVIDER, "CPUExecutionProvider")
    session_providers: tuple[str, ...] = (PROVIDER, "CPUExecutionProvider")
    packages: tuple[str, ...] = ("onnxruntime-gpu",)
    said: str = ""
    refuses: str = ""
    libraries: str | None = "13.0"
    asked: list[Any] = field(default_factory=list)

    def session(self, model: bytes, options: Any, providers: Any, enable_fallback: int = 1) -> Any:
        assert not enable_fallback
        self.asked.append(providers)
        if self.refuses:
            raise RuntimeError(self.refuses)
        return SimpleNamespace(get_providers=lambda: list(self.session_providers))


def pretend(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Put a machine in the place of the real one."""
    pretended = Machine()
    runtime = ModuleType("onnxruntime")
    vars(runtime).update(
        cuda_version="13.0",
        get_available_providers=lambda: list(pretended.providers),
        preload_dlls=lambda: sys.stdout.write(pretended.said),
        SessionOptions=SimpleNamespace,
        InferenceSession=pretended.session,
        set_default_logger_severity=lambda level: None,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(cuda, "load_library", lambda name: pretended.driver)
    monkeypatch.setattr(cuda, "installed_version", lambda name: name in pretended.packages)
    monkeypatch.setattr(cuda, "_brought_cuda", lambda: pretended.libraries)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return pretended
