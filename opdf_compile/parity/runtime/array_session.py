"""One ONNX model on one device, fed with arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from opdf_compile.errors import DeviceError, first_line
from opdf_compile.parity.model_file import PathLike
from opdf_compile.parity.runtime.sessions import Device, open_session
from opdf_compile.parity.runtime.tensors import from_runtime, to_runtime

_PREFIX = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : (Non-zero status code returned while running )?"
)
_MEMORY = ("failed to allocate memory", "out of memory", "bad allocation", "bad_alloc")


class RunFailed(DeviceError):
    """The runtime does not run a model on some inputs.

    Attributes:
        reason: What it says, on one line.
        of_memory: Whether memory ran out: a limit of the machine, not of the model.
    """

    def __init__(self, model: PathLike, error: Exception) -> None:
        """Name the model and the runtime's reason."""
        # "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status ..." says nothing to a user.
        self.reason = _PREFIX.sub("", first_line(error, 300))[:200].rstrip(".")
        self.of_memory = any(words in str(error).lower() for words in _MEMORY)
        super().__init__(
            f"onnxruntime cannot run {model} on its check data ({self.reason}), wanted a model "
            "that runs; export it again, or try another --device"
        )


class ArraySession:
    """A session that takes and returns numpy arrays, bfloat16 included."""

    def __init__(
        self, model: PathLike, device: Device, *, unsaturated: bool = False, optimised: bool = True
    ) -> None:
        """Open the model, with what `open_session` is told.

        Raises:
            ArtefactError: The file is no ONNX model.
            DeviceError: The device cannot run it.
        """
        self._session = open_session(model, device, unsaturated=unsaturated, optimised=optimised)
        self._model = model
        self.on_cpu = device.name == "cpu"
        self.input_names = tuple(value.name for value in self._session.get_inputs())
        self.output_names = tuple(value.name for value in self._session.get_outputs())

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name.

        Raises:
            RunFailed: The runtime fails on these inputs, or they are not the model's.
        """
        known = {name: inputs[name] for name in inputs if name in self.input_names}
        feed = {name: to_runtime(array) for name, array in known.items()}
        try:
            found = self._session.run_with_ort_values(list(self.output_names), feed)
        except Exception as error:  # onnxruntime raises classes of its own, without a common base.
            raise RunFailed(self._model, error) from error
        return {n: from_runtime(value) for n, value in zip(self.output_names, found, strict=True)}
