"""Activation functions; an activation with parameters reads their ONNX defaults here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from opdf_compile.io.onnx_student.operator_table import Call, operator


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """x, or alpha x below zero."""
    return F.leaky_relu(x, call.get("alpha", 0.01))


@operator("PRelu")
def parametric_relu(_: Call, x: Tensor, slope: Tensor) -> Tensor:
    """x, or slope x below zero; the slope broadcasts from the right."""
    return torch.where(x < 0, x * slope, x)


@operator("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    """x, or alpha (exp(x) - 1) below zero."""
    return F.elu(x, call.get("alpha", 1.0))


@operator("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    """x, or alpha (exp(x / alpha) - 1) below zero."""
    return F.celu(x, call.get("alpha", 1.0))


@operator("Selu")
def selu(call: Call, x: Tensor) -> Any:
    """Gamma x, or gamma alpha (exp(x) - 1) below zero."""
    alpha = call.get("alpha", 1.67326319217681884765625)
    return call.get("gamma", 1.05070102214813232421875) * F.elu(x, alpha)


@operator("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """X above alpha, else 0."""
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """Alpha x + beta within 0 and 1. torch's own has another slope (1/6)."""
    return torch.clamp(x * call.get("alpha", 0.2) + call.get("beta", 0.5), 0, 1)


@operator("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    """X sigmoid(alpha x)."""
    return x * torch.sigmoid(x * call.get("alpha", 1.0))


@operator("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    """X times the normal distribution's function, exactly or through tanh."""
    return F.gelu(x, approximate=call.get("approximate", "none"))


@operator("Shrink")
def shrink(call: Call, x: Tensor) -> Tensor:
    """Towards zero by `bias` beyond +-lambd, zero between."""
    limit, bias = call.get("lambd", 0.5), call.get("bias", 0.0)
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero))


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    """Over one axis; below opset 13 over all axes from `axis` on."""
    old = call.version < 13
    axis = call.get("axis", 1 if old else -1)
    if not old:
        return _normalised(call.op, x, axis)
    axis = axis % x.ndim if x.ndim else 0
    if axis == x.ndim - 1:
        return _normalised(call.op, x, -1)
    return _normalised(call.op, x.flatten(axis), -1).reshape(x.shape)


def _normalised(op: str, x: Tensor, axis: int) -> Tensor:
    if op == "Softmax":
        return torch.softmax(x, axis)
    if op == "LogSoftmax":
        return torch.log_softmax(x, axis)
    # Hardmax: one at the first largest element.
    best = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, best, 1.0)
