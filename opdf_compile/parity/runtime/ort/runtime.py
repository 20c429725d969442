"""ONNX Runtime as `verify` asks for it."""

from __future__ import annotations

from pathlib import Path

from opdf_compile.artefacts import is_quantised
from opdf_compile.errors import DeviceError
from opdf_compile.extras import requirements_of
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.runtime.ort.array_session import ArraySession
from opdf_compile.parity.runtime.ort.cuda import PACKAGES, missing_for_cuda
from opdf_compile.parity.runtime.ort.sessions import DEVICES, TENSORRT, resolve, write_optimised
from opdf_compile.parity.runtime.ort.tensorrt import missing_for_tensorrt
from opdf_compile.parity.runtime.protocol import Device, Missing
from opdf_compile.version import installed_version


class OnnxRuntime:
    """What every export is judged in unless another runtime is asked for."""

    name = "onnxruntime"
    unoptimised = (
        "load the file with graph_optimization_level ORT_DISABLE_ALL or the pass in "
        "disabled_optimizers"
    )

    def version(self) -> str | None:
        """That of the package which is installed, of several with this import name."""
        return next((found for name in PACKAGES if (found := installed_version(name))), None)

    def devices(self) -> tuple[str, ...]:
        """The CPU, and the first NVIDIA GPU, by CUDA or by TensorRT."""
        return DEVICES

    def missing(self, device: str) -> Missing | None:
        """What keeps it from running there."""
        if self.version() is None:
            return Missing("onnxruntime is not installed", f"pip install {requirements_of('gpu')}")
        if device == "cpu":
            return None
        try:
            return missing_for_tensorrt() if device == TENSORRT else missing_for_cuda()
        except DeviceError as error:
            return Missing(str(error), "pip install --force-reinstall onnxruntime-gpu")

    def resolve(self, device: str) -> Device:
        """The CPU, or CUDA where its provider loads; TensorRT where it is asked for.

        Raises:
            DeviceError: What was asked for cannot be used; names the missing piece.
            InputError: Another word.
        """
        return resolve(self, device)

    def load(
        self, model: PathLike, device: Device, *, threads: int | None = None, optimised: bool = True
    ) -> ArraySession:
        """A session for a file; sums of int8 products are not cut off, as TF32 is off.

        Raises:
            ArtefactError: The file is missing, no ONNX model, or the runtime refuses the graph.
            DeviceError: The device cannot run it.
        """
        file = ModelFile.of(model)
        return ArraySession(
            file,
            device,
            threads=threads,
            # What is cut off depends on the processor, not on the file.
            unsaturated=is_quantised(file.model),
            optimised=optimised,
        )

    def write_graph(self, source: PathLike, target: Path, device: Device) -> None:
        """The optimised graph, which it writes itself.

        Raises:
            ArtefactError: The runtime refuses the graph.
            DeviceError: The device cannot run it.
        """
        write_optimised(source, target, device)
