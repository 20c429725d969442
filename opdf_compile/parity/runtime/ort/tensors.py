"""Arrays to the runtime's tensors and back; bfloat16, which numpy does not know, as its bits."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

# onnx.TensorProto.BFLOAT16.
_BFLOAT16 = 16


def to_runtime(array: Any, kind: str = "cpu") -> Any:
    """An `OrtValue` on a device, "cpu" or "cuda"; bfloat16 comes as ml_dtypes' type."""
    import onnxruntime as ort

    # `np.ascontiguousarray` would give a scalar an axis.
    array = np.asarray(array, order="C")
    if array.dtype.name != "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy(array, kind, 0)
    value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, _BFLOAT16, kind, 0)
    value.update_inplace(array.view(np.uint16))
    return value


def from_runtime(value: Any) -> np.ndarray[Any, Any]:
    """The array of an `OrtValue` in the host's memory; bfloat16 is widened to float32."""
    if value.data_type() != "tensor(bfloat16)":
        array: np.ndarray[Any, Any] = value.numpy()
        return array
    import ml_dtypes

    shape = value.shape()
    bits = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape, dtype=np.int64)))
    return np.frombuffer(bits, ml_dtypes.bfloat16).reshape(shape).astype(np.float32)
