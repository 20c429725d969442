"""Quantised tensors: import knows them, their integer weights are left alone."""

from __future__ import annotations

import torch
from torch import Tensor

from opdf_compile.io.onnx_student.operator_table import Call, operator


@operator("DequantizeLinear")
def dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(x - zero) * scale, per tensor or per slice of an axis."""
    factor, offset = _along(call, x, scale), _along(call, x, zero)
    wide = x.to(factor.dtype)
    return (wide if zero is None else wide - offset.to(factor.dtype)) * factor


@operator("QuantizeLinear")
def quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """round(x / scale) + zero, within the limits of the integer type."""
    dtype = torch.uint8 if zero is None else zero.dtype
    limits = torch.iinfo(dtype)
    rounded = torch.round(x / _along(call, x, scale))
    shifted = rounded if zero is None else rounded + _along(call, x, zero).to(rounded.dtype)
    return shifted.clamp(limits.min, limits.max).to(dtype)


@operator("DynamicQuantizeLinear")
def quantize_by_range(_: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unsigned bytes over the range of the data, which always holds zero."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round((-low / scale).clamp(0, 255))
    return torch.round(x / scale + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


@operator("MatMulInteger")
def matmul_integer(
    call: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """A product of integers; float64 holds it exactly."""
    if a_zero is not None and a_zero.ndim or b_zero is not None and b_zero.ndim > 1:
        raise call.refusal(
            "has a zero point per row, wanted one per tensor or column",
            "give the model before it was quantised",
        )
    left = a.double() if a_zero is None else a.double() - a_zero.double()
    right = b.double() if b_zero is None else b.double() - b_zero.double()
    return torch.matmul(left, right).to(torch.int32)


def _along(call: Call, x: Tensor, given: Tensor | None) -> Tensor:
    if given is None:
        return torch.zeros((), device=x.device)
    if given.ndim > 1 or call.get("block_size", 0):
        raise call.refusal(
            "quantises in blocks, which has no torch form here",
            "give the model before it was quantised",
        )
    if given.ndim == 0 or given.shape[0] == 1:
        return given.reshape(())
    shape = [1] * x.ndim
    shape[call.get("axis", 1)] = -1
    return given.reshape(shape)
