"""One ONNX model on one device, fed with arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opdf_compile.errors import ArtefactError, DeviceError
from opdf_compile.verify.runtime.sessions import Device, open_session

# onnx.TensorProto.BFLOAT16; numpy has no such dtype, so the runtime takes its bits.
_BFLOAT16 = 16


class Runner:
    """A session that takes and returns numpy arrays, bfloat16 included."""

    def __init__(self, model: Path, device: Device) -> None:
        """Open the model.

        Raises:
            ArtefactError: The file is no ONNX model.
            DeviceError: The device cannot run it.
        """
        self._session = open_session(model, device)
        self._model = model
        self.input_names = tuple(value.name for value in self._session.get_inputs())
        self.output_names = tuple(value.name for value in self._session.get_outputs())

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name.

        Raises:
            ArtefactError: The inputs have other shapes or dtypes than the model's.
            DeviceError: The runtime fails on these inputs.
        """
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        feed = {name: _value(array) for name, array in inputs.items() if name in self.input_names}
        try:
            found = self._session.run_with_ort_values(list(self.output_names), feed)
        except InvalidArgument as error:
            raise ArtefactError(
                f"{self._model} does not take the inputs of its check data ({_reason(error)}); "
                "give the check data that was exported with this model"
            ) from error
        except Exception as error:  # onnxruntime raises classes of its own, without a common base.
            raise DeviceError(
                f"onnxruntime cannot run {self._model} on its check data ({_reason(error)}), "
                "wanted a model that runs; export it again, or try another --device"
            ) from error
        return {n: _array(value) for n, value in zip(self.output_names, found, strict=True)}


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".")


def _value(array: Any) -> Any:
    """An array as the runtime takes it; `np.ascontiguousarray` would give a scalar an axis."""
    import onnxruntime

    if np.asarray(array).dtype.name == "bfloat16":
        bits = np.asarray(array, order="C").view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))


def _array(value: Any) -> np.ndarray[Any, Any]:
    if value.data_type() == "tensor(bfloat16)":
        import torch.utils.dlpack

        wide = torch.utils.dlpack.from_dlpack(value._ortvalue.to_dlpack()).float()
        return wide.cpu().numpy()
    array: np.ndarray[Any, Any] = value.numpy()
    return array
