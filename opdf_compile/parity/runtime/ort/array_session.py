"""One ONNX model on one device of ONNX Runtime, fed with arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from opdf_compile.errors import first_line
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.runtime.ort.bound_session import BoundSession, bind
from opdf_compile.parity.runtime.ort.sessions import TENSORRT, open_session
from opdf_compile.parity.runtime.ort.tensorrt import fallback_of, precision_in_force
from opdf_compile.parity.runtime.ort.tensors import from_runtime, to_runtime
from opdf_compile.parity.runtime.protocol import Device, RunFailed

_PREFIX = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : (Non-zero status code returned while running )?"
)


class ArraySession:
    """A session that takes and returns numpy arrays, bfloat16 included."""

    def __init__(
        self,
        model: PathLike,
        device: Device,
        *,
        threads: int | None = None,
        unsaturated: bool = False,
        optimised: bool = True,
    ) -> None:
        """Open the model, with what `open_session` is told.

        Raises:
            ArtefactError: The file is no ONNX model.
            DeviceError: The device cannot run it.
        """
        self._session = open_session(
            model, device, threads=threads, unsaturated=unsaturated, optimised=optimised
        )
        self._model, self._kind = model, "cpu" if device.name == "cpu" else "cuda"
        self.on_cpu = device.name == "cpu"
        self.precision, self.fallback = device.precision, ""
        if device.name == TENSORRT:
            self.precision = precision_in_force(self._session)
            self.fallback = fallback_of(self._session, ModelFile.of(model))
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
            # "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero ..." says nothing to a user.
            reason = _PREFIX.sub("", first_line(error, 300))
            raise RunFailed("onnxruntime", self._model, error, reason=reason) from error
        return {n: from_runtime(value) for n, value in zip(self.output_names, found, strict=True)}

    def bind(self, inputs: Mapping[str, Any]) -> BoundSession:
        """Put the inputs on the device and run once.

        Raises:
            InputError: The model cannot run on these inputs.
        """
        return bind(self._session, inputs, self._kind)
