"""OpenCV as `verify` asks for it: a runtime for each of its engines."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from opdf_compile.errors import DeviceError, first_line
from opdf_compile.extras import requirements_of
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.runtime.cv import net as nets
from opdf_compile.parity.runtime.cv.apart import Apart
from opdf_compile.parity.runtime.held_model import Array, HeldModel, Hold, Run, Stopped
from opdf_compile.parity.runtime.inputs import require_dtypes
from opdf_compile.parity.runtime.one_device import CPU, require_optimised, resolve_only
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
        install = f"{sys.executable} -m pip install {requirements_of('opencv')}"
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
        return resolve_only(self, device, self.engine, {"target": "DNN_TARGET_CPU"})

    def load(
        self, model: PathLike, device: Device, *, threads: int | None = None, optimised: bool = True
    ) -> HeldModel:
        """Read a file.

        Raises:
            ArtefactError: The file is missing or no ONNX model.
            DeviceError: The engine does not take it, or `optimised` is off.
        """
        require_optimised(self, model, optimised)
        file = ModelFile.of(model)
        file.require_whole()
        require_dtypes(self.name, file, _DTYPES, _DTYPES)
        return HeldModel(self.name, file, partial(self._read, file, threads_wanted(threads)))

    def write_graph(self, source: PathLike, target: Path, device: Device) -> None:
        """It does not.

        Raises:
            DeviceError: Always.
        """
        raise DeviceError(f"{self.name} does not tell the graph that it runs")

    def _read(self, file: ModelFile, threads: int) -> Hold:
        ports = file.interface.outputs
        try:
            hold = self._net(str(file), [port.name for port in ports], threads)
        except Stopped as error:
            raise DeviceError(
                f"{self.name} cannot read {file} ({error}); give another --runtime"
            ) from error

        def held(arrays: Mapping[str, Array]) -> Run:
            run = hold(arrays)
            return lambda: [_declared(v, p.dtype) for v, p in zip(run(), ports, strict=True)]

        return held

    def _net(self, path: str, outputs: Sequence[str], threads: int) -> Hold:
        """What holds a net of a file."""
        import cv2

        if threads:
            cv2.setNumThreads(threads)
        return partial(nets.hold, nets.read(path, self.engine), outputs)


class OpenCvClassic(OpenCv):
    """The engine of the versions before 5, which is also what other targets than the CPU have."""

    name = "opencv-classic"
    engine = "ENGINE_CLASSIC"

    def _net(self, path: str, outputs: Sequence[str], threads: int) -> Hold:
        return Apart(path, self.engine, outputs, threads).hold


def _declared(value: Array, dtype: str) -> Array:
    # The classic engine has no 64-bit integers.
    return value.astype(dtype) if np.can_cast(value.dtype, dtype, "safe") else value
