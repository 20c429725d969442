"""ExecuTorch as `verify` asks for it: the program beside the ONNX file."""

from __future__ import annotations

import sys
from pathlib import Path

from opdf_compile.errors import DeviceError, first_line
from opdf_compile.extras import requirements_of
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.runtime.et.program import NAME, Program, quietly
from opdf_compile.parity.runtime.held_model import HeldModel
from opdf_compile.parity.runtime.inputs import require_dtypes
from opdf_compile.parity.runtime.one_device import CPU, require_optimised, resolve_only
from opdf_compile.parity.runtime.protocol import Device, Missing, threads_wanted
from opdf_compile.version import installed_version

_BACKEND = "XnnpackBackend"
# numpy has no bfloat16.
_DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8"),
)


class ExecuTorch:
    """ExecuTorch's own interpreter, and XNNPACK for what was left to it.

    The ONNX file gives names, shapes, types and structure, and what runs is the `.pte` file beside
    it. It imports torch.
    """

    name = NAME
    # What was lowered is fixed in the file.
    unoptimised = ""

    def version(self) -> str | None:
        """That of the package."""
        return installed_version(NAME)

    def devices(self) -> tuple[str, ...]:
        """The processor."""
        return (CPU,)

    def missing(self, device: str) -> Missing | None:
        """What keeps it from running."""
        install = f"{sys.executable} -m pip install {requirements_of('executorch')}"
        try:
            with quietly():
                from executorch.runtime import Runtime

                has_backend = Runtime.get().backend_registry.is_available(_BACKEND)
        except ImportError as error:
            if self.version() is None:
                return Missing("executorch is not installed", install)
            return Missing(f"executorch cannot be loaded ({first_line(error)})", install)
        return None if has_backend else Missing("this executorch has no XNNPACK", install)

    def resolve(self, device: str) -> Device:
        """The processor.

        Raises:
            DeviceError: ExecuTorch cannot be used; names the missing piece.
            InputError: Another word.
        """
        return resolve_only(self, device, _BACKEND, {})

    def load(
        self, model: PathLike, device: Device, *, threads: int | None = None, optimised: bool = True
    ) -> HeldModel:
        """Load the program beside a file.

        Raises:
            ArtefactError: The file is missing or no ONNX model, or has no program of its own.
            DeviceError: ExecuTorch does not load it, or `optimised` is off.
        """
        require_optimised(self, model, optimised)
        file = ModelFile.of(model)
        file.require_whole()
        require_dtypes(self.name, file, _DTYPES, _DTYPES)
        wanted = threads_wanted(threads)
        return HeldModel(self.name, file, lambda: Program(file, wanted).hold)

    def write_graph(self, source: PathLike, target: Path, device: Device) -> None:
        """It does not.

        Raises:
            DeviceError: Always.
        """
        raise DeviceError(f"{self.name} does not tell the graph that it runs")
