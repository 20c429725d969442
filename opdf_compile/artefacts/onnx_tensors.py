"""Tensors of an ONNX file: their type by numpy's name, and a fingerprint of what they hold.

Two tensors are the same when dtype, shape and bytes agree, however the file stores them (raw bytes,
typed fields, another file).
"""

from __future__ import annotations

import functools
import hashlib
import math
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdf_compile.errors import ArtefactError
from opdf_compile.files import sha256_of_part

if TYPE_CHECKING:
    import onnx

# Bytes of one element by ONNX element type, where all of its bits belong to it: float32, int64,
# int32, float64, float16, uint8, int8, uint16, int16, uint32 and uint64.
_WHOLE_BYTES = {1: 4, 7: 8, 6: 4, 11: 8, 10: 2, 2: 1, 3: 1, 4: 2, 5: 2, 12: 4, 13: 8}


@functools.cache
def element_type(code: int) -> str:
    """Name an ONNX element type as numpy does: 1 -> ``float32``."""
    from onnx import TensorProto

    name = TensorProto.DataType.Name(code) if code in TensorProto.DataType.values() else str(code)
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())


def as_floats(array: Any, dtype: str) -> Any:
    """A floating array in another floating dtype by name; all else as it is."""
    if "float" not in array.dtype.name or "float" not in dtype or array.dtype.name == dtype:
        return array
    if dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    return array.astype(dtype)


def fingerprint_of(tensor: onnx.TensorProto | onnx.SparseTensorProto, folder: str = "") -> Hashable:
    """Return a value that is equal for equal dtype, shape and bytes.

    Args:
        tensor: The tensor, stored in whichever field.
        folder: Folder of the model file, for external data.

    Raises:
        ArtefactError: The data cannot be read or does not fill the shape.
    """
    from onnx import SparseTensorProto, TensorProto, numpy_helper

    if isinstance(tensor, SparseTensorProto):
        # The same numbers may be listed in another order; that they then differ errs on the side of
        # refusing.
        parts = (tensor.values, tensor.indices)
        return ("sparse", tuple(tensor.dims), *(fingerprint_of(part, folder) for part in parts))
    head = (tensor.data_type, tuple(tensor.dims))
    # The common case: the file's bytes are the numbers' own, and nothing needs unpacking.
    if (
        sys.byteorder == "little"
        and tensor.data_location == TensorProto.DEFAULT
        and len(tensor.raw_data) == math.prod(head[1]) * _WHOLE_BYTES.get(tensor.data_type, -1)
    ):
        return (*head, hashlib.sha256(tensor.raw_data).digest())
    if tensor.data_type == TensorProto.STRING:
        return (*head, tuple(tensor.string_data))
    try:
        if sys.byteorder == "little" and tensor.data_location == TensorProto.EXTERNAL:
            part = _plain_part(tensor, folder)
            if part is not None:
                return (*head, sha256_of_part(*part))
        array = numpy_helper.to_array(tensor, folder)
    # numpy, ml_dtypes, the file system and onnx's checker each raise their own class here; all
    # of them say that this tensor cannot be read.
    except Exception as error:
        raise ArtefactError(
            f"the data of initialiser {tensor.name!r} cannot be read ({error}); export it again"
        ) from error
    # Typed fields and packed numbers (4 bits, booleans) are hashed as numpy holds them.
    return (*head, hashlib.sha256(array.tobytes()).digest())


def _plain_part(tensor: onnx.TensorProto, folder: str) -> tuple[Path, int, int] | None:
    """File, offset and length of external numbers whose bytes are their own; else None.

    Reading them in pieces keeps a constant of gigabytes out of memory. Names that lead out of the
    folder are left to onnx, which refuses them.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, length = entries.get("location", ""), int(entries.get("length", -1))
    path = Path(folder) / location
    if Path(location).name != location or path.is_symlink() or not path.is_file():
        return None
    if length != math.prod(tensor.dims) * _WHOLE_BYTES.get(tensor.data_type, -1):
        return None
    return path, int(entries.get("offset", 0)), length


def dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """A sparse tensor with its zeros written out."""
    import numpy as np
    from onnx import numpy_helper

    values, indices = map(numpy_helper.to_array, (sparse.values, sparse.indices))
    array = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    if indices.ndim == 1:
        array.reshape(-1)[indices] = values
    else:
        array[tuple(indices.T)] = values
    return numpy_helper.from_array(array, sparse.values.name)
