"""Reading and writing at places that are data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from opdf_compile.io.onnx_student.operands import Host, Operand, as_tensor, only_number
from opdf_compile.io.onnx_student.operator_table import Call, operator

_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Gather", either=(1,))
def gather(call: Call, x: Tensor, indices: Operand) -> Tensor:
    """Rows of an axis; negative places count from the end."""
    axis = call.get("axis", 0) % x.ndim
    if isinstance(indices, Host) and indices.array.ndim == 0:
        return x.select(axis, only_number(indices))
    places = as_tensor(indices, x.device)
    if axis == 0 and x.ndim == 2 and x.dtype.is_floating_point:
        # The matcher knows a lookup table by its op.
        return F.embedding(_wrapped(places, x.shape[0]) if _may_wrap(indices) else places, x)
    flat = _wrapped(places, x.shape[axis]).reshape(-1)
    taken = x.index_select(axis, flat)
    return taken.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def _may_wrap(indices: Operand) -> bool:
    """Whether a place may be negative: constants are looked at, data may always be."""
    return not isinstance(indices, Host) or any(item < 0 for item in indices.items())


def _wrapped(indices: Tensor, size: Any) -> Tensor:
    return torch.where(indices < 0, indices + size, indices)


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """torch.gather, with places that may be negative."""
    axis = call.get("axis", 0) % x.ndim
    return x.gather(axis, _wrapped(indices, x.shape[axis]).long())


@operator("GatherND")
def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """The last axis of the indices is a place in the axes of x after the batch."""
    batch = call.get("batch_dims", 0)
    depth = indices.shape[-1]
    places: list[Any] = []
    for axis in range(batch):
        lead = torch.arange(x.shape[axis], device=x.device)
        shape = [1] * (indices.ndim - 1)
        shape[axis] = x.shape[axis]
        places.append(lead.reshape(shape))
    for k in range(depth):
        places.append(_wrapped(indices[..., k], x.shape[batch + k]))
    return x[tuple(places)]


@operator("ScatterElements", "Scatter")
def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """torch.scatter, with places that may be negative."""
    axis = call.get("axis", 0) % x.ndim
    places = _wrapped(indices, x.shape[axis]).long()
    how = call.get("reduction", "none")
    if how == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _SCATTER[how], include_self=True)


@operator("ScatterND")
def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """The last axis of the indices is a place in the first axes of x."""
    how = call.get("reduction", "none")
    depth = indices.shape[-1]
    places = tuple(_wrapped(indices[..., k], x.shape[k]).long() for k in range(depth))
    if how in ("none", "add"):
        return x.index_put(places, updates, accumulate=how == "add")
    raise call.refusal(f"scatters with the reduction {how!r}, wanted none or add")


@operator("OneHot", either=(1, 2))
def one_hot(call: Call, indices: Tensor, depth: Operand, values: Operand) -> Tensor:
    """A new axis with the second value at the index and the first elsewhere."""
    size = int(only_number(depth))
    off_on = as_tensor(values, indices.device)
    axis = call.get("axis", -1) % (indices.ndim + 1)
    wrapped = _wrapped(indices, size).unsqueeze(axis)
    shape = [1] * (indices.ndim + 1)
    shape[axis] = size
    classes = torch.arange(size, device=indices.device).reshape(shape)
    return torch.where(wrapped == classes, off_on[1], off_on[0])


@operator("NonZero")
def non_zero(_: Call, x: Tensor) -> Tensor:
    """Places of the elements that are not zero, one column each."""
    return x.nonzero().t()


@operator("Compress")
def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    """The slices of an axis for which the condition holds."""
    axis = call.get("axis")
    flat, dim = (x.reshape(-1), 0) if axis is None else (x, axis)
    return flat.index_select(dim, condition.nonzero().reshape(-1))


@operator("GridSample")
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """Interpolation at given places."""
    mode = call.get("mode", "linear")
    plain = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    corners = bool(call.get("align_corners", 0))
    padding = call.get("padding_mode", "zeros")
    return F.grid_sample(x, grid, mode=plain, padding_mode=padding, align_corners=corners)
