"""What flows along the edges of an imported graph: tensors, and sizes that stay symbols.

An ONNX graph computes shapes with tensors (Shape -> Gather -> Concat -> Reshape). Were they torch
tensors, torch.export would see sizes that depend on data. A `Host` holds such a small tensor as
Python numbers and symbols, so that an axis that is dynamic in the file stays dynamic in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import SymBool, SymFloat, SymInt, Tensor

from opdf_compile.artefacts import element_type

# torch gives these functions of symbols no types.
sym_int: Callable[[Any], Any] = torch.sym_int
sym_max: Callable[[Any, Any], Any] = torch.sym_max
sym_min: Callable[[Any, Any], Any] = torch.sym_min
_SYMBOLS = (SymInt, SymFloat, SymBool)
_NUMPY = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
_DTYPES = frozenset(
    {
        *("bool", "float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    }
)
# Shapes have few elements; what is larger is data.
LARGEST_HOST = 1024


@dataclass(frozen=True, eq=False)
class Host:
    """A small tensor as numbers and symbols.

    Attributes:
        array: A numpy array of objects.
        dtype: The dtype it has in the ONNX graph.
        read: Gives the tensor of the module that holds the same numbers, where there is one.
    """

    array: Any
    dtype: torch.dtype
    read: Callable[[], Tensor] | None = None

    @property
    def symbolic(self) -> bool:
        """Whether an element is a symbol."""
        return any(isinstance(item, _SYMBOLS) for item in self.array.flat)

    def items(self) -> list[Any]:
        """The elements in order."""
        return list(self.array.flat)

    def item(self) -> Any:
        """The only element."""
        (only,) = self.array.flat
        return only


Operand = Tensor | Host


def torch_dtype(code: int) -> torch.dtype | None:
    """The dtype of an ONNX element type, or None where torch has none to calculate with."""
    name = element_type(code)
    return getattr(torch, name) if name in _DTYPES else None


def host(items: Any, dtype: torch.dtype = torch.int64) -> Host:
    """A Host of nested lists, an array or one number."""
    if isinstance(items, np.ndarray):
        array = items if items.dtype == object else items.astype(object)
    elif isinstance(items, list | tuple):
        array = np.empty(len(items), dtype=object)
        array[:] = list(items)
    else:
        array = np.empty((), dtype=object)
        array[()] = items
    return Host(array, dtype)


def as_tensor(value: Operand, device: torch.device) -> Tensor:
    """The value as a tensor."""
    if isinstance(value, Tensor):
        return value
    if value.read is not None:
        return value.read()
    if not value.symbolic:
        return torch.tensor(value.array.tolist(), dtype=value.dtype, device=device)
    scalars = [
        torch.scalar_tensor(item, dtype=value.dtype, device=device) for item in value.array.flat
    ]
    return torch.stack(scalars).reshape(value.array.shape)


def as_host(value: Operand) -> Host:
    """The value as numbers; those of a tensor depend on data."""
    if isinstance(value, Host):
        return value
    return host(np.array(value.tolist(), dtype=object), value.dtype)


def numbers(value: Operand | None) -> list[Any]:
    """The elements as numbers and symbols; none for an input that was left out."""
    return [] if value is None else as_host(value).items()


def only_number(value: Operand) -> Any:
    """The only element as a number or symbol."""
    return as_host(value).item()


def rounded_to(item: Any, dtype: torch.dtype) -> Any:
    """A computed number as its dtype holds it; symbols stay as they are."""
    if isinstance(item, _SYMBOLS):
        return item
    if dtype in _NUMPY:
        number_: Any = _NUMPY[dtype](item)
        return float(number_)
    return bool(item) if dtype is torch.bool else int(item)


def elementwise(function: Callable[..., Any], dtype: torch.dtype, *operands: Host) -> Host:
    """Apply a function of numbers to every element, with ONNX's (numpy's) broadcasting."""
    arrays = np.broadcast_arrays(*(operand.array for operand in operands))
    result = np.empty(arrays[0].shape, dtype=object)
    for place in np.ndindex(result.shape):
        result[place] = rounded_to(function(*(array[place] for array in arrays)), dtype)
    return Host(result, dtype)


def operand_shape(value: Operand) -> Sequence[Any]:
    """The shape, whose sizes may be symbols."""
    return tuple(value.shape) if isinstance(value, Tensor) else value.array.shape
