"""OpenVINO as `verify` asks for it."""

from __future__ import annotations

import functools
import logging
import os
import sys
from pathlib import Path
from typing import Any

from opdf_compile.errors import ArtefactError, DeviceError, InputError
from opdf_compile.extras import requirements_of
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.runtime.ov.compiled import CompiledFile, last_line, require_readable
from opdf_compile.parity.runtime.ov.graph import graph_that_runs
from opdf_compile.parity.runtime.protocol import Device, Missing, threads_wanted
from opdf_compile.version import installed_version

_LOG = logging.getLogger("opdf_compile")
_NAME = "openvino"
_DEVICES = {"cpu": "CPU", "gpu": "GPU"}
PRECISION = "f32"
# Left alone it computes in bfloat16 or float16 where the processor has them: faster, and an error
# of 1e-2 that no export is to blame for. A second stream would run requests side by side.
OPTIONS = {"INFERENCE_PRECISION_HINT": PRECISION, "NUM_STREAMS": "1"}


class OpenVino:
    """Intel's runtime, for its processors and its GPUs."""

    name = _NAME
    # Its passes cannot be switched off.
    unoptimised = ""

    def version(self) -> str | None:
        """That of the package."""
        return installed_version(_NAME)

    def devices(self) -> tuple[str, ...]:
        """The CPU, and the first GPU of OpenVINO's GPU plugin."""
        return tuple(_DEVICES)

    def missing(self, device: str) -> Missing | None:
        """What keeps it from running there."""
        install = f"{sys.executable} -m pip install {requirements_of('openvino')}"
        try:
            found = _core().available_devices
        # Without a plugin that fits, it imports and then raises RuntimeError.
        except (ImportError, RuntimeError) as error:
            if self.version() is None:
                return Missing("openvino is not installed", install)
            reason = f"openvino cannot be loaded ({last_line(error)})"
            return Missing(reason, f"{install} --force-reinstall")
        if any(one.split(".")[0] == _DEVICES[device] for one in found):
            return None
        return Missing(
            f"OpenVINO shows no {_DEVICES[device]} (it shows {', '.join(found) or 'no device'})",
            "install Intel's compute runtime (the OpenCL driver of the GPU), and in a container "
            "start it with access to /dev/dri",
        )

    def resolve(self, device: str) -> Device:
        """The CPU, or with "auto" the GPU where OpenVINO shows one.

        Raises:
            DeviceError: OpenVINO or the device cannot be used; names the missing piece.
            InputError: Another word.
        """
        if device not in ("auto", *_DEVICES):
            words = ", ".join(_DEVICES)
            raise InputError(f"{_NAME} has no device {device!r}; give auto or one of {words}")
        # Without the package no device runs, so the CPU's missing piece comes first.
        missing = self.missing("cpu") or (None if device == "cpu" else self.missing("gpu"))
        if missing is None:
            on_gpu = device != "cpu"
            because = "auto: OpenVINO shows a GPU" if device == "auto" else "asked for"
            return self._device("gpu" if on_gpu else "cpu", because)
        if device == "auto" and self.missing("cpu") is None:
            _LOG.info("device auto: cpu, because %s", missing.piece)
            return self._device("cpu", f"auto: {missing.piece}")
        asked = _NAME if device == "auto" else f"{_NAME}:{device}"
        raise DeviceError(
            f"--runtime {asked} was asked for but {missing.piece}; {missing.remedy}, or give "
            "another --runtime"
        )

    def load(
        self, model: PathLike, device: Device, *, threads: int | None = None, optimised: bool = True
    ) -> CompiledFile:
        """Compile a file.

        Raises:
            ArtefactError: The file is missing, no ONNX model, or the runtime refuses the graph.
            DeviceError: The device cannot run it, or `optimised` is off.
        """
        if not optimised:
            raise DeviceError(
                f"{_NAME} cannot load {model} without its graph optimisation; give another "
                "--runtime"
            )
        file = ModelFile.of(model)
        file.require_whole()
        require_readable(file)
        options: dict[str, Any] = dict(device.provider_options)
        wanted = threads_wanted(threads)
        if wanted and device.name == "cpu":
            options["INFERENCE_NUM_THREADS"] = wanted
        return CompiledFile(file, _compiled(file, device, options), on_cpu=device.name == "cpu")

    def write_graph(self, source: PathLike, target: Path, device: Device) -> None:
        """The graph that it runs, as it tells it: operations, precisions, shapes, kernels, edges.

        Raises:
            ArtefactError: The runtime refuses the graph.
            DeviceError: The device cannot run it.
        """
        import onnx

        compiled = _compiled(source, device, dict(device.provider_options))
        read = _core().read_model(os.fspath(source))
        onnx.save_model(graph_that_runs(compiled.get_runtime_model(), read), target)

    def _device(self, name: str, because: str) -> Device:
        provider = _DEVICES[name]
        return Device(name, provider, dict(OPTIONS), because, runtime=self, precision=PRECISION)


@functools.cache
def _core() -> Any:
    """One core: it holds the plugins, whose loading would else be part of each cold start."""
    import openvino

    return openvino.Core()


def _compiled(source: PathLike, device: Device, options: dict[str, Any]) -> Any:
    try:
        return _core().compile_model(os.fspath(source), device.provider, options)
    # OpenVINO raises RuntimeError for all that is wrong, with a stack of C++ lines as its text.
    except RuntimeError as error:
        reason = last_line(error)
        if "support" in reason.lower():
            raise DeviceError(
                f"{_NAME} has no implementation for an operator of {source} ({reason}); give "
                "another --runtime"
            ) from error
        raise ArtefactError(f"{_NAME} cannot load {source} ({reason}); export it again") from error
