"""One ONNX file compiled by OpenVINO: fed with arrays, or bound to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from opdf_compile.errors import DeviceError
from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.runtime.inputs import by_name, does_not_run
from opdf_compile.parity.runtime.ov.graph import executed
from opdf_compile.parity.runtime.protocol import RunFailed, seconds_per_run

# What its tensors cannot bring to numpy and back, or it computes in less than the file says.
_UNREADABLE = {
    "bfloat16": "numpy cannot read its bfloat16 tensors",
    "float64": "it computes float64 in float32",
}
_FLOATS = ("f64", "f32", "f16", "bf16")


@dataclass(frozen=True)
class BoundRequest:
    """A request whose inputs are the caller's own arrays.

    Attributes:
        request: OpenVINO's request.
        inputs: The tensors that it reads, and must not outlive.
    """

    request: Any
    inputs: tuple[Any, ...] = ()

    def run(self) -> None:
        """Run once and wait for the outputs, which stay in the request's own tensors."""
        # Without sharing, every call would copy the outputs into new arrays.
        self.request.infer(share_outputs=True)

    def seconds(self, runs: int) -> float:
        """Seconds per run over a block of runs."""
        return seconds_per_run(self.run, runs)


class CompiledFile:
    """A compiled model that takes and returns numpy arrays."""

    def __init__(self, file: ModelFile, compiled: Any, *, on_cpu: bool) -> None:
        """Take what OpenVINO compiled of a file."""
        self._file, self._compiled = file, compiled
        self._request: Any = None
        self.on_cpu = on_cpu
        self.input_names = tuple(port.name for port in file.interface.inputs)
        self.output_names = tuple(port.name for port in file.interface.outputs)

    @property
    def precision(self) -> str:
        """What it was set to and what its operations have, both read back from it.

        Device plugins may ignore the hint, and single operations may have no kernel for it.
        """
        hint = str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        counted = Counter(
            operation.precision
            for operation in executed(self._compiled.get_runtime_model())
            if operation.computes and operation.precision in _FLOATS
        )
        others = {name: number for name, number in counted.items() if name != hint}
        if not others:
            return hint
        told = " and ".join(f"{name} in {number}" for name, number in sorted(others.items()))
        return f"{hint}, but {told} of {counted.total()} operations"

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name.

        Raises:
            RunFailed: The runtime fails on these inputs, or they are not the model's.
        """
        known = {name: inputs[name] for name in inputs if name in self.input_names}
        missing = [name for name in self.input_names if name not in known]
        if missing:  # The request would go on with what an earlier call left there.
            error = KeyError(f"no input {missing[0]!r} was given")
            raise RunFailed("openvino", self._file, error, reason=str(error.args[0]))
        try:
            self._request = self._request or self._compiled.create_infer_request()
            # They must live until the run is over.
            held = _set(self._request, known)
            self._request.infer(share_outputs=True)
            del held
            # Copies, since the next run writes into the same memory.
            return {n: np.array(self._request.get_tensor(n).data) for n in self.output_names}
        # As in compiling, there is one class for everything; pybind adds its own for arguments.
        except (RuntimeError, TypeError, ValueError) as error:
            raise RunFailed("openvino", self._file, error, reason=last_line(error)) from error

    def bind(self, inputs: Mapping[str, Any]) -> BoundRequest:
        """Let a request of its own read the arrays in place, and run once.

        Raises:
            InputError: The model cannot run on these inputs.
        """
        arrays = by_name(self.input_names, inputs)
        try:
            request = self._compiled.create_infer_request()
            bound = BoundRequest(request, _set(request, arrays))
            bound.run()
        except (RuntimeError, TypeError, ValueError) as error:
            raise does_not_run(inputs, last_line(error)) from error
        return bound


def require_readable(file: ModelFile) -> None:
    """Refuse inputs and outputs that would not be compared as what the file says they are.

    Raises:
        DeviceError: Names the first of them.
    """
    ports = (("input", file.interface.inputs), ("output", file.interface.outputs))
    for what, port in ((what, port) for what, found in ports for port in found):
        if port.dtype in _UNREADABLE:
            raise DeviceError(
                f"openvino cannot judge {file}, whose {what} {port.name!r} is {port.dtype} "
                f"({_UNREADABLE[port.dtype]}); export it in float32, or give another --runtime"
            )


def last_line(error: Exception) -> str:
    """What OpenVINO says went wrong: the last line, under the C++ files that it came through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200].rstrip(".")


def _set(request: Any, arrays: Mapping[str, Any]) -> tuple[Any, ...]:
    """Give a request its inputs without a copy; return what it points into."""
    import openvino

    held = {
        # Shared memory must be one writable block; `np.require` leaves what already is.
        name: openvino.Tensor(np.require(array, requirements=["C", "W"]), shared_memory=True)
        for name, array in arrays.items()
    }
    for name, tensor in held.items():
        request.set_tensor(name, tensor)
    return tuple(held.values())
