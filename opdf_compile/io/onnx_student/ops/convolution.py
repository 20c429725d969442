"""Convolutions: ONNX pads each side on its own, torch both sides alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from opdf_compile.io.onnx_student.operands import sym_max
from opdf_compile.io.onnx_student.operator_table import Call, operator

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
Pads = list[tuple[Any, Any]]


@operator("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Any groups, strides, dilations and padding, in one to three dimensions."""
    rank = _rank(call, weight)
    strides, dilations = sizes(call, "strides", rank), sizes(call, "dilations", rank)
    pads = explicit_pads(call, x, list(weight.shape[2:]), strides, dilations)
    same = all(before is after or before == after for before, after in pads)
    if not same:
        x = F.pad(x, flat(pads))
    padding = [before for before, _after in pads] if same else 0
    return _CONV[rank](x, weight, bias, strides, padding, dilations, call.get("group", 1))


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The gradient of Conv; what ONNX pads is cut off the result."""
    rank = _rank(call, weight)
    strides, dilations = sizes(call, "strides", rank), sizes(call, "dilations", rank)
    extra = call.get("output_padding") or [0] * rank
    pads = _transposed_pads(call, x, list(weight.shape[2:]), strides, dilations, extra)
    function, group = _TRANSPOSED[rank], call.get("group", 1)
    same = all(before == after and before >= 0 for before, after in pads)
    if same and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        padding = [before for before, _after in pads]
        return function(x, weight, bias, strides, padding, extra, group, dilations)
    # torch refuses an output padding of a whole stride, and unequal sides: pad and cut here.
    full = function(x, weight, None, strides, 0, 0, group, dilations)
    cut = [(-before, more - after) for (before, after), more in zip(pads, extra, strict=True)]
    full = F.pad(full, flat(cut))
    return full if bias is None else full + bias.reshape(-1, *([1] * rank))


def sizes(call: Call, name: str, rank: int) -> list[int]:
    """Strides or dilations; one per axis where left out."""
    return list(call.get(name) or [1] * rank)


def explicit_pads(
    call: Call, x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]
) -> Pads:
    """The padding before and after each axis, whichever way the node asks for it."""
    rank = len(kernel)
    auto = call.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        shape = x.shape[2:]
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        totals = [_same_total(n, span, s) for n, span, s in zip(shape, spans, strides, strict=True)]
        small = [(t // 2, t - t // 2) for t in totals]
        return small if auto == "SAME_UPPER" else [(after, before) for before, after in small]
    if auto == "VALID":
        return [(0, 0)] * rank
    given = call.get("pads") or [0] * (2 * rank)
    return list(zip(given[:rank], given[rank:], strict=True))


def _same_total(size: Any, span: int, stride: int) -> Any:
    """Padding that makes ceil(size / stride) outputs."""
    if stride == 1:
        return span - 1  # Whatever the size: it may be a symbol.
    needed = ((size + stride - 1) // stride - 1) * stride + span - size
    return sym_max(needed, 0)


def _transposed_pads(
    call: Call,
    x: Tensor,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    extra: list[int],
) -> Pads:
    auto, wanted = call.get("auto_pad", "NOTSET"), call.get("output_shape")
    if auto not in ("SAME_UPPER", "SAME_LOWER") and wanted is None:
        return explicit_pads(call, x, kernel, strides, dilations)
    shape = x.shape[2:]
    goal = list(wanted or [n * s for n, s in zip(shape, strides, strict=True)])[-len(kernel) :]
    totals = [
        s * (n - 1) + e + d * (k - 1) + 1 - g
        for n, s, e, d, k, g in zip(shape, strides, extra, dilations, kernel, goal, strict=True)
    ]
    halves = [(t // 2, t - t // 2) for t in totals]
    # The specification: the smaller half comes first only for SAME_UPPER.
    return halves if auto == "SAME_UPPER" else [(after, before) for before, after in halves]


def flat(pads: Pads) -> list[Any]:
    """Pads in the order of torch.nn.functional.pad: the last axis first."""
    return [side for pair in reversed(pads) for side in pair]


def _rank(call: Call, weight: Tensor) -> int:
    rank = weight.ndim - 2
    if rank not in _CONV:
        raise call.refusal(f"has a kernel of {rank} axes, wanted one to three")
    return rank
