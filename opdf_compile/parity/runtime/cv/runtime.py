"""OpenCV as `verify` asks for it: a runtime for each of its engines."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from opdf_compile.errors import DeviceError, first_line
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.runtime.cpu_only import CPU, require_optimised, resolve_cpu
from opdf_compile.parity.runtime.held_model import Array, HeldModel, Hold, Run, Stopped
from opdf_compile.parity.runtime.inputs import require_dtypes
from opdf_compile.parity.runtime.native_log import native_log
from opdf_compile.parity.runtime.protocol import Device, Missing, threads_wanted

# Half precision comes back in float32.
_DTYPES = ("float32", "int64", "int32", "int8", "uint8", "bool")


class OpenCv:
    """The `dnn` module with the engine that it tries first since version 5."""

    name: ClassVar[str] = "opencv"
    # Read with the engine left to OpenCV, a file that one does not take goes to the other in
    # silence.
    engine: ClassVar[str] = "ENGINE_NEW"
    # The new engine has no switch, the classic one computes other graphs with its own off.
    unoptimised = ""

    def version(self) -> str | None:
        """That of the module, which several packages bring."""
        try:
            import cv2
        except ImportError:
            return None
        return str(cv2.__version__)

    def devices(self) -> tuple[str, ...]:
        """The processor."""
        return (CPU,)

    def missing(self, device: str) -> Missing | None:
        """What keeps it from running."""
        install = f"{sys.executable} -m pip install 'opdf-compile[opencv]'"
        try:
            import cv2
        except ImportError as error:
            if isinstance(error, ModuleNotFoundError) and error.name == "cv2":
                return Missing("OpenCV is not installed", install)
            return Missing(f"OpenCV cannot be loaded ({first_line(error)})", install)
        if not hasattr(cv2.dnn, self.engine):
            return Missing(f"OpenCV {cv2.__version__} has no choice of engines", f"{install} -U")
        return None

    def resolve(self, device: str) -> Device:
        """The processor.

        Raises:
            DeviceError: OpenCV cannot be used; names the missing piece.
            InputError: Another word.
        """
        return resolve_cpu(self, device, self.engine, {"target": "DNN_TARGET_CPU"})

    def load(
        self, model: PathLike, device: Device, *, threads: int | None = None, optimised: bool = True
    ) -> HeldModel:
        """Read a file.

        Raises:
            ArtefactError: The file is missing or no ONNX model.
            DeviceError: The engine does not take it, or `optimised` is off.
        """
        import cv2

        require_optimised(self, model, optimised)
        file = ModelFile.of(model)
        file.require_whole()
        require_dtypes(self.name, file, _DTYPES, _DTYPES)
        wanted = threads_wanted(threads)
        if wanted:
            cv2.setNumThreads(wanted)

        def read() -> Hold:
            return partial(_hold, self._read(file), file)

        return HeldModel(self.name, file, read)

    def write_graph(self, source: PathLike, target: Path, device: Device) -> None:
        """It does not.

        Raises:
            DeviceError: Always.
        """
        raise DeviceError(f"{self.name} does not tell the graph that it runs")

    def _read(self, file: ModelFile) -> Any:
        import cv2

        with native_log() as log:
            try:
                net = cv2.dnn.readNetFromONNX(str(file), getattr(cv2.dnn, self.engine))
                net.setPreferableTarget(cv2.dnn.DNN_TARGET_CPU)
            except cv2.error as error:
                raise self._refused(file, _reason(error)) from error
            if net.empty():  # The new engine's way to refuse; only its log says why.
                raise self._refused(file, _reason(log().rpartition("DNN/ONNX: ")[2]))
        return net

    def _refused(self, file: ModelFile, reason: str) -> DeviceError:
        return DeviceError(f"{self.name} cannot read {file} ({reason}); give another --runtime")


class OpenCvClassic(OpenCv):
    """The engine of the versions before 5, which is also what other targets than the CPU have."""

    name = "opencv-classic"
    engine = "ENGINE_CLASSIC"


def _hold(net: Any, file: ModelFile, arrays: Mapping[str, Array]) -> Run:
    """Set a net's inputs."""
    import cv2

    ports = file.interface.outputs
    names = [port.name for port in ports]

    def run() -> list[Array]:
        try:
            with native_log():
                found = net.forward(names)
        except cv2.error as error:
            raise Stopped(_reason(error)) from error
        return [_declared(value, port.dtype) for value, port in zip(found, ports, strict=True)]

    try:
        for name, array in arrays.items():
            net.setInput(array, name)
    except cv2.error as error:
        raise Stopped(_reason(error)) from error
    return run


def _declared(value: Array, dtype: str) -> Array:
    # The classic engine has no 64-bit integers.
    return value.astype(dtype) if np.can_cast(value.dtype, dtype, "safe") else value


def _reason(error: Any) -> str:
    """What OpenCV says went wrong, on one line and without the C++ files that it came through."""
    text = " ".join(str(getattr(error, "err", "") or error).split())
    # One error may quote another.
    return text.rpartition("error: ")[2].removeprefix("> ")[:200].rstrip(". ")
