"""ncnn as `verify` asks for it: with float16 off, and as it is used by those who change nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

from opdf_compile.errors import first_line
from opdf_compile.extras import requirements_of
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.runtime.held_model import HeldModel
from opdf_compile.parity.runtime.inputs import require_dtypes
from opdf_compile.parity.runtime.nc.conversion import converted, graph_of, tool
from opdf_compile.parity.runtime.nc.net import loaded
from opdf_compile.parity.runtime.one_device import CPU, require_optimised, resolve_only
from opdf_compile.parity.runtime.protocol import Device, Missing, threads_wanted
from opdf_compile.version import installed_version


class Ncnn:
    """ncnn with float16 switched off, at conversion and at load."""

    name: ClassVar[str] = "ncnn"
    # Left on, weights and arithmetic are float16: an error of 1e-2 that no export is to blame for.
    half: ClassVar[bool] = False
    unoptimised = ""

    def version(self) -> str | None:
        """That of the package."""
        return installed_version("ncnn")

    def devices(self) -> tuple[str, ...]:
        """The processor."""
        return (CPU,)

    def missing(self, device: str) -> Missing | None:
        """What keeps it from running: the runtime, or the tool that converts files for it."""
        install = f"{sys.executable} -m pip install {requirements_of('ncnn')}"
        try:
            import ncnn  # noqa: F401
        except ImportError as error:
            absent = self.version() is None
            piece = "is not installed" if absent else f"cannot be loaded ({first_line(error)})"
            return Missing(f"ncnn {piece}", install)
        if tool() is None:
            return Missing("pnnx, which converts ONNX files for ncnn, is not installed", install)
        return None

    def resolve(self, device: str) -> Device:
        """The processor.

        Raises:
            DeviceError: ncnn or its tool cannot be used; names the missing piece.
            InputError: Another word.
        """
        options = {"pnnx fp16": str(int(self.half)), "use_fp16": str(self.half)}
        return resolve_only(self, device, "CPU", options, "f16" if self.half else "f32")

    def load(
        self, model: PathLike, device: Device, *, threads: int | None = None, optimised: bool = True
    ) -> HeldModel:
        """Convert a file and load it.

        Raises:
            ArtefactError: The file is missing or no ONNX model.
            DeviceError: pnnx or ncnn does not take it, or `optimised` is off.
        """
        require_optimised(self, model, optimised)
        file = self._file(model)
        with converted(file, half=self.half) as found:
            hold, precision = loaded(found, half=self.half, threads=threads_wanted(threads))
        return HeldModel(self.name, file, lambda: hold, precision)

    def write_graph(self, source: PathLike, target: Path, device: Device) -> None:
        """The layers of the converted file, with their options and without weights.

        Raises:
            ArtefactError: The file is missing or no ONNX model.
            DeviceError: pnnx does not take it.
        """
        import onnx

        with converted(self._file(source), half=self.half) as found:
            onnx.save_model(graph_of(found.read()), target)

    def _file(self, source: PathLike) -> ModelFile:
        file = ModelFile.of(source)
        file.require_whole()
        require_dtypes(self.name, file, ("float32", "int64", "int32"), ("float32",))
        return file


class NcnnHalf(Ncnn):
    """ncnn as pnnx and its options leave it: float16 for weights and, where it can, arithmetic."""

    name = "ncnn-fp16"
    half = True
