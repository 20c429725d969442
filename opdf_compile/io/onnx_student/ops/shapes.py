"""Operators that rearrange, cut, join and make tensors. Sizes may be symbols."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from opdf_compile.io.onnx_student.operands import (
    Operand,
    as_host,
    numbers,
    only_number,
    torch_dtype,
)
from opdf_compile.io.onnx_student.operator_table import Call, operator

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@operator("Identity", either=(0,))
def identity(_: Call, x: Operand) -> Operand:
    """The input itself."""
    return x


@operator("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    """Another dtype; floats are truncated to integers."""
    return x.to(wanted_dtype(call, call.get("to")))


@operator("CastLike", either=(1,))
def cast_like(_: Call, x: Tensor, like: Operand) -> Tensor:
    """The dtype of the second input."""
    return x.to(like.dtype)


def wanted_dtype(call: Call, code: int) -> torch.dtype:
    """The torch dtype of an ONNX code.

    Raises:
        InputError: torch does not calculate in it.
    """
    dtype = torch_dtype(code)
    if dtype is None:
        raise call.refusal(
            f"wants the ONNX element type {code}, which torch does not calculate in",
            "export the model in float32, float16 or bfloat16",
        )
    return dtype


@operator("Reshape", numbers=(1,))
def reshape(call: Call, x: Tensor, shape: Operand) -> Tensor:
    """A 0 copies the size of the input (unless `allowzero`), a -1 is inferred."""
    wanted = numbers(shape)
    if not call.get("allowzero", 0):
        wanted = [
            x.shape[axis] if isinstance(size, int) and size == 0 else size
            for axis, size in enumerate(wanted)
        ]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """Two axes: those before `axis`, and the rest."""
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 0:
        return x.reshape(1, -1)
    if axis == 1 and x.ndim > 1:
        return x.flatten(1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    """Permuted axes; reversed ones by default."""
    return x.permute(call.get("perm") or list(reversed(range(x.ndim))))


@operator("Squeeze", numbers=(1,))
def squeeze(call: Call, x: Tensor, given: Operand | None = None) -> Tensor:
    """Without the given axes of size 1, or without all of them."""
    axes = call.get("axes") or numbers(given)
    return x.squeeze(tuple(int(axis) for axis in axes)) if axes else x.squeeze()


@operator("Unsqueeze", numbers=(1,))
def unsqueeze(call: Call, x: Tensor, given: Operand | None = None) -> Tensor:
    """New axes at the given places of the result."""
    axes = [int(axis) for axis in (call.get("axes") or numbers(given))]
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(call: Call, *tensors: Tensor) -> Tensor:
    """Joined along an axis; an empty tensor keeps its rank, unlike torch's."""
    return torch.cat(tensors, call.get("axis", 0))


@operator("Split", numbers=(1,))
def split(call: Call, x: Tensor, given: Operand | None = None) -> Any:
    """Cut along an axis: at the given sizes, or into as many parts as there are outputs."""
    axis = call.get("axis", 0)
    parts = call.get("split") or numbers(given)
    if not parts:
        count = call.get("num_outputs") or len(call.node.proto.output)
        each = (x.shape[axis] + count - 1) // count
        # Symbols do not allow a last part of another size to be ruled out; torch's split does it.
        return tuple(torch.split(x, each, axis))
    return tuple(torch.split(x, parts, axis))


@operator("Slice", numbers=(1, 2, 3, 4))
def slice_(
    call: Call,
    x: Tensor,
    starts: Operand | None = None,
    ends: Operand | None = None,
    axes: Operand | None = None,
    steps: Operand | None = None,
) -> Tensor:
    """Numpy's slices; torch has no negative step, so a flip goes before."""
    firsts = call.get("starts") or numbers(starts)
    lasts = call.get("ends") or numbers(ends)
    places = call.get("axes") or numbers(axes) or list(range(len(firsts)))
    strides = numbers(steps) or [1] * len(firsts)
    for axis, start, end, step in zip(places, firsts, lasts, strides, strict=True):
        x = _sliced(x, int(axis) % x.ndim, start, end, int(step))
    return x


def _sliced(x: Tensor, axis: int, start: Any, end: Any, step: int) -> Tensor:
    size = x.shape[axis]
    if step < 0:
        start, end = _mirrored(start, size), _mirrored(end, size)
        x, step = x.flip(axis), -step
    index: list[Any] = [slice(None)] * axis
    # The largest integers stand for "to the end".
    last = None if isinstance(end, int) and end >= 2**31 - 1 else end
    return x[(*index, slice(start, last, step))]


def _mirrored(bound: Any, size: Any) -> Any:
    """A bound of a backward slice as the bound of a forward one over the flipped axis."""
    if isinstance(bound, int) and bound < 0:
        # Below the first element: the flipped slice runs to the end.
        if isinstance(size, int):
            return size if bound < -size else -bound - 1
        return 2**31 - 1 if bound < -(2**30) else -bound - 1
    if isinstance(bound, int) and bound >= 2**30:
        return 0
    mirrored = size - 1 - bound
    return max(mirrored, 0) if isinstance(mirrored, int) else mirrored


@operator("Expand", numbers=(1,))
def expand(_: Call, x: Tensor, shape: Operand) -> Tensor:
    """Broadcast in both directions: a size of 1 that is asked for changes nothing."""
    wanted = numbers(shape)
    rank = max(x.ndim, len(wanted))
    own = [1] * (rank - x.ndim) + list(x.shape)
    asked = [1] * (rank - len(wanted)) + wanted
    sizes = [
        size if isinstance(goal, int) and goal == 1 else goal
        for size, goal in zip(own, asked, strict=True)
    ]
    return x.expand(sizes)


@operator("Tile", numbers=(1,))
def tile(_: Call, x: Tensor, repeats: Operand) -> Tensor:
    """Repeated along each axis."""
    return x.repeat(numbers(repeats))


@operator("Pad", numbers=(1, 2, 3))
def pad(
    call: Call,
    x: Tensor,
    given: Operand | None = None,
    value: Operand | None = None,
    axes: Operand | None = None,
) -> Tensor:
    """Padding per side; negative numbers cut."""
    sides = call.get("pads") or numbers(given)
    fill = call.get("value", 0.0) if value is None else only_number(value)
    places = [int(axis) % x.ndim for axis in numbers(axes)] or list(range(x.ndim))
    pairs: list[tuple[Any, Any]] = [(0, 0)] * x.ndim
    for place, before, after in zip(
        places, sides[: len(places)], sides[len(places) :], strict=True
    ):
        pairs[place] = (before, after)
    mode = _PAD_MODES[call.get("mode", "constant")]
    if mode == "constant":
        flat = [side for pair in reversed(pairs) for side in pair]
        while len(flat) > 2 and flat[-2:] == [0, 0]:
            flat = flat[:-2]
        return F.pad(x, flat, value=fill)
    for axis, pair in enumerate(pairs):
        if any(not isinstance(side, int) or side for side in pair):
            x = _padded_axis(x, axis, pair, mode)
    return x


def _padded_axis(x: Tensor, axis: int, pair: tuple[Any, Any], mode: str) -> Tensor:
    """Torch pads the last axes of a batch only, so the axis is moved there and back."""
    rows = x.movedim(axis, -1)
    padded = F.pad(rows.reshape(1, -1, rows.shape[-1]), pair, mode=mode)
    return padded.reshape(*rows.shape[:-1], padded.shape[-1]).movedim(-1, axis)


@operator("ConstantOfShape", numbers=(0,))
def constant_of_shape(call: Call, shape: Operand) -> Tensor:
    """One number in every element."""
    value = call.get("value")
    dtype = torch.float32 if value is None else getattr(torch, str(value.dtype))
    fill = 0.0 if value is None else value.reshape(-1)[0].item()
    return torch.full(numbers(shape), fill, dtype=dtype, device=call.device)


@operator("Range", numbers=(0, 1, 2))
def range_(call: Call, start: Operand, limit: Operand, step: Operand) -> Tensor:
    """Numbers from start up to the limit."""
    ends = [only_number(value) for value in (start, limit, step)]
    return torch.arange(*ends, dtype=as_host(start).dtype, device=call.device)


@operator("EyeLike")
def eye_like(call: Call, x: Tensor) -> Any:
    """Ones on a diagonal, in the input's shape."""
    dtype = wanted_dtype(call, call.get("dtype")) if call.get("dtype") else x.dtype
    rows, columns = (torch.arange(size, device=x.device) for size in (x.shape[0], x.shape[1]))
    return (columns[None, :] - rows[:, None] == call.get("k", 0)).to(dtype)


@operator("Trilu", numbers=(1,))
def triangle(call: Call, x: Tensor, diagonal: Operand | None = None) -> Tensor:
    """The upper or lower triangle of the last two axes."""
    k = 0 if diagonal is None else int(only_number(diagonal))
    return x.triu(k) if call.get("upper", 1) else x.tril(k)


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Blocks of channels become blocks of pixels."""
    block = call.get("blocksize")
    n, c, h, w = x.shape
    if call.get("mode", "DCR") == "CRD":
        parts = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Blocks of pixels become blocks of channels."""
    block = call.get("blocksize")
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


@operator("ReverseSequence")
def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """The first so many elements of each sequence, backwards."""
    batch, time = call.get("batch_axis", 1), call.get("time_axis", 0)
    if {batch, time} != {0, 1}:
        raise call.refusal(
            f"has the axes {batch} and {time}, wanted 0 and 1",
            "export the model with ONNX's checker on",
        )
    rows = x.movedim(time, 1) if time == 0 else x
    steps = torch.arange(rows.shape[1], device=x.device)[None, :]
    ends = lengths.to(steps.dtype)[:, None]
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    index = index.reshape(*index.shape, *([1] * (rows.ndim - 2))).expand(rows.shape)
    reversed_ = rows.gather(1, index)
    return reversed_.movedim(1, time) if time == 0 else reversed_
