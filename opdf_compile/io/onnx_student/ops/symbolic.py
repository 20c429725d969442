"""The arithmetic of shapes, on numbers and symbols: see `operands`."""

from __future__ import annotations

import math
import operator as py
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from opdf_compile.io.onnx_student.operands import (
    LARGEST_HOST,
    Host,
    Operand,
    elementwise,
    host,
    numbers,
    operand_shape,
    rounded_to,
    sym_int,
    sym_max,
    sym_min,
    torch_dtype,
)
from opdf_compile.io.onnx_student.operator_table import Call, on_host, operator


@operator("Shape", either=(0,))
def shape(call: Call, x: Operand) -> Host:
    """The sizes, or a range of them."""
    sizes = list(operand_shape(x))
    return host(sizes[call.get("start", 0) : call.get("end", len(sizes))])


@operator("Size", either=(0,))
def size(_: Call, x: Operand) -> Host:
    """The number of elements."""
    return host(math.prod(operand_shape(x)))


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return int(a / b) if (a < 0) != (b < 0) else a // b
    if isinstance(a, int | torch.SymInt) and isinstance(b, int | torch.SymInt):
        return a // b  # Sizes are not negative.
    return a / b


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": py.add,
    "Sub": py.sub,
    "Mul": py.mul,
    "Div": _divide,
    "Neg": py.neg,
    "Max": sym_max,
    "Min": sym_min,
    "Floor": math.floor,
    "Ceil": math.ceil,
}
# A comparison of sizes is decided while the graph is made: torch keeps the outcome as a guard.
_COMPARE: dict[str, Callable[..., Any]] = {
    "Equal": py.eq,
    "Greater": py.gt,
    "GreaterOrEqual": py.ge,
    "Less": py.lt,
    "LessOrEqual": py.le,
    "And": lambda a, b: a and b,
    "Or": lambda a, b: a or b,
    "Not": py.not_,
}


@on_host(*_ARITHMETIC)
def arithmetic(call: Call, *operands: Host) -> Any:
    """Integers and single floats; tensors of floats are data."""
    wide = any(o.dtype.is_floating_point and o.array.size > 1 for o in operands)
    return (
        NotImplemented if wide else elementwise(_ARITHMETIC[call.op], operands[0].dtype, *operands)
    )


@on_host("Sqrt")
def square_root(_: Call, x: Host) -> Any:
    """The root of a size, as attention scales by it."""
    root = torch.sym_sqrt if x.symbolic else math.sqrt
    return elementwise(root, x.dtype, x) if x.array.size == 1 else NotImplemented


@on_host("Mod")
def remainder(call: Call, a: Host, b: Host) -> Any:
    """The remainder of integers."""
    plain = not call.get("fmod", 0) and not a.dtype.is_floating_point
    return elementwise(py.mod, a.dtype, a, b) if plain else NotImplemented


@on_host(*_COMPARE)
def compare(call: Call, *operands: Host) -> Host:
    """A truth value for each element."""
    return elementwise(lambda *items: bool(_COMPARE[call.op](*items)), torch.bool, *operands)


@on_host("Where")
def where(_: Call, condition: Host, a: Host, b: Host) -> Host:
    """A where the condition holds, else B."""
    return elementwise(lambda c, x, y: x if c else y, a.dtype, condition, a, b)


@on_host("Cast")
def cast(call: Call, x: Host) -> Any:
    """Another dtype."""
    dtype = torch_dtype(call.get("to"))
    if dtype is None or dtype.is_complex:
        return NotImplemented
    convert: Callable[[Any], Any] = int
    if dtype.is_floating_point:
        convert = torch.sym_float if x.symbolic else float
    elif x.symbolic:
        convert = sym_int
    return elementwise(convert, dtype, x)


@on_host("Concat")
def concat(call: Call, *parts: Host) -> Any:
    """Joined along an axis."""
    return Host(np.concatenate([p.array for p in parts], call.get("axis", 0)), parts[0].dtype)


@on_host("Gather")
def gather(call: Call, x: Host, indices: Host) -> Any:
    """Elements at given places."""
    if indices.symbolic:
        return NotImplemented
    taken = np.take(x.array, indices.array.astype(np.int64), axis=call.get("axis", 0))
    return host(taken, x.dtype)


@on_host("Slice")
def slice_(
    call: Call,
    x: Host,
    starts: Host | None = None,
    ends: Host | None = None,
    axes: Host | None = None,
    steps: Host | None = None,
) -> Any:
    """Numpy's slices."""
    if any(part is not None and part.symbolic for part in (starts, ends, axes, steps)):
        return NotImplemented
    firsts = call.get("starts") or numbers(starts)
    lasts = call.get("ends") or numbers(ends)
    places = call.get("axes") or numbers(axes) or list(range(len(firsts)))
    strides = numbers(steps) or [1] * len(firsts)
    index = [slice(None)] * x.array.ndim
    for axis, first, last, step in zip(places, firsts, lasts, strides, strict=True):
        stop = None if step < 0 and last < -LARGEST_HOST else last
        index[axis] = slice(first, stop, step)
    return Host(x.array[tuple(index)], x.dtype)


@on_host("Squeeze")
def squeeze(call: Call, x: Host, given: Host | None = None) -> Host:
    """Without axes of size 1."""
    axes = tuple(call.get("axes") or numbers(given)) or None
    return host(np.squeeze(x.array, axes), x.dtype)


@on_host("Unsqueeze")
def unsqueeze(call: Call, x: Host, given: Host | None = None) -> Host:
    """New axes of size 1."""
    axes = tuple(call.get("axes") or numbers(given))
    return Host(np.expand_dims(x.array, axes), x.dtype)


@on_host("Reshape")
def reshape(_: Call, x: Host, wanted: Host) -> Any:
    """Another shape, if it is known."""
    if wanted.symbolic or 0 in wanted.items():
        return NotImplemented
    return Host(x.array.reshape(wanted.items()), x.dtype)


@on_host("Transpose")
def transpose(call: Call, x: Host) -> Host:
    """Permuted axes."""
    return Host(np.transpose(x.array, call.get("perm")), x.dtype)


@on_host("Expand")
def expand(_: Call, x: Host, wanted: Host) -> Any:
    """Broadcast in both directions."""
    if wanted.symbolic or wanted.array.size > 8:
        return NotImplemented
    target = np.broadcast_shapes(x.array.shape, tuple(wanted.items()))
    if math.prod(target) > LARGEST_HOST:
        return NotImplemented
    return Host(np.broadcast_to(x.array, target).copy(), x.dtype)


@on_host("Split")
def split(call: Call, x: Host, given: Host | None = None) -> Any:
    """Parts of known sizes."""
    parts = call.get("split") or numbers(given)
    if not parts or (given is not None and given.symbolic):
        return NotImplemented
    cuts = np.cumsum(parts)[:-1]
    return tuple(Host(p, x.dtype) for p in np.split(x.array, cuts, call.get("axis", 0)))


@on_host("ConstantOfShape")
def constant_of_shape(call: Call, wanted: Host) -> Any:
    """Integers that a shape is made of; anything else is a tensor."""
    value = call.get("value")
    if value is None or value.dtype.kind not in "iub" or wanted.symbolic:
        return NotImplemented
    if math.prod(wanted.items()) > LARGEST_HOST:
        return NotImplemented
    array = np.empty(tuple(wanted.items()), dtype=object)
    array.fill(value.reshape(-1)[0].item())
    return Host(array, getattr(torch, str(value.dtype)))


@on_host("Range")
def range_(_: Call, start: Host, limit: Host, step: Host) -> Any:
    """Short runs of integers."""
    ends = [v.item() for v in (start, limit, step)]
    plain = all(type(end) is int for end in ends)
    if not plain or len(range(*ends)) > 64:
        return NotImplemented
    return host(list(range(*ends)), start.dtype)


_REDUCE: dict[str, Callable[..., Any]] = {
    "ReduceProd": py.mul,
    "ReduceSum": py.add,
    "ReduceMax": sym_max,
    "ReduceMin": sym_min,
}


@on_host(*_REDUCE)
def reduce(call: Call, x: Host, given: Host | None = None) -> Any:
    """One number of a list of sizes."""
    if x.array.ndim != 1 or not x.array.size or x.dtype.is_floating_point:
        return NotImplemented
    total = x.items()[0]
    for item in x.items()[1:]:
        total = _REDUCE[call.op](total, item)
    total = rounded_to(total, x.dtype)
    return host([total], x.dtype) if call.get("keepdims", 1) else host(total, x.dtype)
