"""Arithmetic and logic, element by element, and products of matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from opdf_compile.io.onnx_student.operands import Host, Operand, only_number
from opdf_compile.io.onnx_student.operator_table import Call, operator

# torch has these under a name of its own, with the same meaning.
_SAME: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Add": torch.add,
    "And": torch.logical_and,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseNot": torch.bitwise_not,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.linalg.det,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mish": F.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": torch.round,  # Both round halves to even.
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),  # torch's own is x from 20 on.
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "Where": torch.where,
    "Xor": torch.logical_xor,
}


@operator(*_SAME)
def same(call: Call, *operands: Tensor) -> Any:
    """What torch computes under its own name."""
    return _SAME[call.op](*operands)


@operator("Div")
def div(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """A / B; integers are truncated."""
    if a.dtype.is_floating_point or a.dtype.is_complex:
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """The remainder, with the sign of the divisor, or with `fmod` of the dividend."""
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@operator("Pow", either=(1,))
def power(_: Call, base: Tensor, exponent: Operand) -> Tensor:
    """Base ** exponent, in the base's dtype."""
    if isinstance(exponent, Host) and exponent.array.size == 1:
        # A number keeps the derivative free of log(base).
        only = only_number(exponent)
        plain = int(only) if float(only).is_integer() else only
        raised = torch.pow(base, plain)
        return raised.reshape(raised.shape + (1,) * (exponent.array.ndim - base.ndim))
    if isinstance(exponent, Host):
        exponent = torch.tensor(exponent.array.tolist(), dtype=exponent.dtype, device=base.device)
    return torch.pow(base, exponent).to(base.dtype)


_FOLDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Mean": torch.add,
    "Min": torch.minimum,
    "Sum": torch.add,
}


@operator(*_FOLDED)
def folded(call: Call, *tensors: Tensor) -> Tensor:
    """One operation over any number of inputs."""
    result = tensors[0]
    for tensor in tensors[1:]:
        result = _FOLDED[call.op](result, tensor)
    return result / len(tensors) if call.op == "Mean" else result


@operator("Clip", either=(1, 2))
def clip(call: Call, x: Tensor, low: Operand | None = None, high: Operand | None = None) -> Tensor:
    """Limits by attribute below opset 11, then by input."""
    if call.version < 11:
        limits = (call.get("min"), call.get("max"))
        return x if limits == (None, None) else torch.clamp(x, *limits)
    if low is not None:
        x = x.clamp(min=_limit(low))
    return x if high is None else x.clamp(max=_limit(high))


def _limit(value: Operand) -> Any:
    return only_number(value) if isinstance(value, Host) else value


@operator("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Alpha A' B' + beta C, where ' may be a transposition."""
    a = a.t() if call.get("transA", 0) else a
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    bias = c if c is None or beta == 1.0 else c * beta
    if call.get("transB", 0):
        if alpha == 1.0 and bias is not None and bias.ndim == 1:
            return F.linear(a, b, bias)
        product = F.linear(a, b)
    else:
        product = torch.matmul(a, b)
    product = product if alpha == 1.0 else product * alpha
    return product if bias is None else product + bias


@operator("Einsum")
def einsum(call: Call, *tensors: Tensor) -> Tensor:
    """Torch and ONNX write the equation alike."""
    return torch.einsum(call.get("equation").replace(" ", ""), *tensors)


@operator("CumSum", numbers=(1,))
def cumulative_sum(call: Call, x: Tensor, axis: Operand) -> Tensor:
    """Running sums, from the end with `reverse`, without the element itself with `exclusive`."""
    dim = int(only_number(axis))
    x = x.flip(dim) if call.get("reverse", 0) else x
    total = x.cumsum(dim, dtype=x.dtype)
    total = total - x if call.get("exclusive", 0) else total
    return total.flip(dim) if call.get("reverse", 0) else total


@operator("BitShift")
def bit_shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """A shift of bits to one side."""
    left = call.get("direction") == "LEFT"
    return torch.bitwise_left_shift(a, b) if left else torch.bitwise_right_shift(a, b)


@operator("IsInf")
def is_infinite(call: Call, x: Tensor) -> Tensor:
    """Whether an element is infinite, of the signs that are asked for."""
    negative, positive = call.get("detect_negative", 1), call.get("detect_positive", 1)
    if negative and positive:
        return torch.isinf(x)
    if not (negative or positive):
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isneginf(x) if negative else torch.isposinf(x)
