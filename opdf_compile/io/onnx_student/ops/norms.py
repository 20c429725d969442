"""Normalisations. BatchNorm runs in its inference form: a file is a deployed model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from opdf_compile.io.onnx_student.operands import torch_dtype
from opdf_compile.io.onnx_student.operator_table import Call, operator


@operator("BatchNormalization")
def batch_norm(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """Scale and shift by the stored statistics."""
    if call.get("training_mode", 0):
        raise call.refusal(
            "is in training mode, wanted a file for inference",
            "export the model after model.eval()",
        )
    if call.get("spatial", 1) == 0:
        factor = scale / torch.sqrt(variance + call.get("epsilon", 1e-5))
        return (x - mean) * factor + bias
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Each channel of each sample by its own statistics."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    """All axes from `axis` on by their own statistics."""
    _only_first(call)
    shape = x.shape[call.get("axis", -1) % x.ndim :]
    if tuple(scale.shape) != tuple(shape):
        plain = F.layer_norm(x, shape, eps=call.get("epsilon", 1e-5)) * scale
        return plain if bias is None else plain + bias
    return F.layer_norm(x, shape, scale, bias, call.get("epsilon", 1e-5))


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """All axes from `axis` on by their root mean square."""
    _only_first(call)
    axes = list(range(call.get("axis", -1) % x.ndim, x.ndim))
    # The specification computes in `stash_type` (float32 by default) and comes back.
    stash = torch_dtype(call.get("stash_type", 1)) or torch.float32
    wide = x.to(stash) if x.dtype in (torch.float16, torch.bfloat16) else x
    square = wide.square().mean(axes, keepdim=True)
    return (wide * torch.rsqrt(square + call.get("epsilon", 1e-5))).to(x.dtype) * scale


@operator("GroupNormalization")
def group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Groups of channels; below opset 21 scale and bias are per group."""
    groups, epsilon = call.get("num_groups"), call.get("epsilon", 1e-5)
    if call.version < 21:
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return F.group_norm(x, groups, scale, bias, epsilon)


@operator("LRN")
def local_response_norm(call: Call, x: Tensor) -> Any:
    """Each element by the squares of its neighbours in the channel axis."""
    size, alpha = call.get("size"), call.get("alpha", 1e-4)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = F.pad(x.square().movedim(1, -1), [before, after])
    total = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (call.get("bias", 1.0) + alpha / size * total) ** call.get("beta", 0.75)


@operator("LpNormalization")
def lp_norm(call: Call, x: Tensor) -> Tensor:
    """One axis by its p-norm; zeros stay zeros."""
    norm = torch.linalg.vector_norm(x, call.get("p", 2), call.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, 1.0, norm))


@operator("MeanVarianceNormalization")
def mean_variance(call: Call, x: Tensor) -> Tensor:
    """The given axes by their statistics."""
    axes = call.get("axes") or [0, 2, 3]
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


@operator("Dropout")
def dropout(call: Call, x: Tensor, *_ratio_and_mode: Any) -> Any:
    """Nothing, for a file is a deployed model; the mask is all true."""
    return (x, torch.ones_like(x, dtype=torch.bool)) if len(call.node.proto.output) > 1 else x


def _only_first(call: Call) -> None:
    if any(call.node.proto.output[1:]):
        raise call.refusal("also gives its statistics, which have no form here")
