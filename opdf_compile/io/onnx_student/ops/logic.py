"""Comparisons, boolean algebra and choices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opdf_compile.io.onnx_student.operator_table import Call, operator

_BINARY: dict[str, Callable[..., Any]] = {
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}


@operator(*_BINARY)
def binary(call: Call, a: Tensor, b: Tensor) -> Any:
    """A comparison or a logical operation."""
    return _BINARY[call.op](a, b)


@operator("Not")
def negation(_: Call, x: Tensor) -> Tensor:
    """The other truth value."""
    return torch.logical_not(x)


@operator("Where")
def where(_: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A where the condition holds, else B."""
    return torch.where(condition, a, b)


@operator("IsNaN")
def is_nan(_: Call, x: Tensor) -> Tensor:
    """Whether an element is no number."""
    return torch.isnan(x)


@operator("IsInf")
def is_infinite(call: Call, x: Tensor) -> Tensor:
    """Whether an element is infinite, of the signs that are asked for."""
    negative, positive = call.get("detect_negative", 1), call.get("detect_positive", 1)
    if negative and positive:
        return torch.isinf(x)
    if not (negative or positive):
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isneginf(x) if negative else torch.isposinf(x)
