"""Pooling. Sizes follow ONNX's formulas, which round up and pad in ways that torch does not."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from opdf_compile.io.onnx_student.operands import sym_max
from opdf_compile.io.onnx_student.operator_table import Call, operator
from opdf_compile.io.onnx_student.ops.convolution import Pads, explicit_pads, flat, sizes

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(call: Call, x: Tensor) -> Any:
    """The mean, maximum or p-norm over all spatial axes, which stay as size 1."""
    axes = list(range(2, x.ndim))
    if call.op == "GlobalLpPool":
        return torch.linalg.vector_norm(x, call.get("p", 2), axes, keepdim=True)
    return (torch.mean if call.op == "GlobalAveragePool" else torch.amax)(x, axes, keepdim=True)


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> Any:
    """The maximum of each window; padding counts as minus infinity."""
    if len(call.node.proto.output) > 1:
        raise call.refusal("also gives the places of the maxima, which have no form here")
    kernel, strides, dilations = _windows(call)
    pads = _rounded_up(call, x, explicit_pads(call, x, kernel, strides, dilations))
    integral = not x.dtype.is_floating_point
    wide = x.double() if integral else x
    if any(any(_not_zero(side) for side in pair) for pair in pads):
        wide = F.pad(wide, flat(pads), value=float("-inf"))
    pooled = _MAX[len(kernel)](wide, kernel, strides, 0, dilations)
    return pooled.to(x.dtype) if integral else pooled


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """The mean of each window; padding counts only with `count_include_pad`."""
    kernel, strides, dilations = _windows(call)
    given = explicit_pads(call, x, kernel, strides, dilations)
    pads = _rounded_up(call, x, given)
    if not any(_not_zero(side) for pair in pads for side in pair):
        return _window_means(x, kernel, strides, dilations)
    padded = F.pad(x, flat(pads))
    # What rounding up added never counts, so the weights of the elements are pooled alike.
    ones = torch.ones_like(x[:1, :1])
    if call.get("count_include_pad", 0):
        ones = F.pad(ones, flat(given), value=1.0)
        pads = [(0, all_ - own) for (_, all_), (_, own) in zip(pads, given, strict=True)]
    counted = F.pad(ones, flat(pads))
    sums = _window_means(padded, kernel, strides, dilations)
    return sums / _window_means(counted, kernel, strides, dilations)


@operator("LpPool")
def lp_pool(call: Call, x: Tensor) -> Any:
    """The p-norm of each window."""
    kernel, strides, dilations = _windows(call)
    pads = _rounded_up(call, x, explicit_pads(call, x, kernel, strides, dilations))
    p = call.get("p", 2)
    powers = F.pad(x.abs() ** p, flat(pads))
    means = _window_means(powers, kernel, strides, dilations)
    return (means * math.prod(kernel)) ** (1.0 / p)


def _windows(call: Call) -> tuple[list[int], list[int], list[int]]:
    kernel = list(call.get("kernel_shape"))
    if len(kernel) not in _MAX:
        raise call.refusal(f"has windows of {len(kernel)} axes, wanted one to three")
    return kernel, sizes(call, "strides", len(kernel)), sizes(call, "dilations", len(kernel))


def _rounded_up(call: Call, x: Tensor, pads: Pads) -> Pads:
    """More padding at the end, so that `ceil_mode`'s last window is whole."""
    if not call.get("ceil_mode", 0):
        return pads
    kernel, strides, dilations = _windows(call)
    return [
        (before, after + _missing(n + before + after, d * (k - 1) + 1, s, n + before))
        for n, (before, after), k, s, d in zip(
            x.shape[2:], pads, kernel, strides, dilations, strict=True
        )
    ]


def _missing(size: Any, span: int, stride: int, covered: Any) -> Any:
    """How much the last of ceil((size - span) / stride) + 1 windows lacks.

    A last window that would begin in the padding behind the input is left out.
    """
    steps = (size - span + stride - 1) // stride
    if steps * stride >= covered:
        return 0
    return sym_max(steps * stride + span - size, 0)


def _not_zero(side: Any) -> bool:
    return not isinstance(side, int) or side != 0


def _window_means(x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    rank = len(kernel)
    if all(d == 1 for d in dilations):
        pooled: Tensor = _AVERAGE[rank](x, kernel, strides)
        return pooled
    # torch has no dilated average: windows are views along each axis, summed up in turn.
    for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True), start=2):
        x = x.unfold(axis, d * (k - 1) + 1, s)[..., ::d].mean(-1)
    return x
