"""Resize, axis by axis: every coordinate rule of ONNX is a table of sources and weights.

    out[i] = sum_k w[i, k] * in[source[i, k]]

Linear interpolation is separable, so an n-dimensional resize is n one-dimensional ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from opdf_compile.io.onnx_student.operands import Operand, numbers, sym_int, sym_max
from opdf_compile.io.onnx_student.operator_table import Call, operator

_EXACT = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")


@operator("Upsample", numbers=(1,))
def upsample(call: Call, x: Tensor, scales: Operand | None = None) -> Tensor:
    """Resize's predecessor: sources are multiples, rounded down."""
    factors = call.get("scales") or numbers(scales)
    mode = call.get("mode", "nearest")
    for axis, scale in enumerate(factors):
        if not _is_one(scale):
            size = _scaled(x.shape[axis], scale)
            x = _resized(call, x, axis, size, scale, (mode, "asymmetric", "floor"))
    return x


@operator("Resize", numbers=(1, 2, 3))
def resize(call: Call, x: Tensor, *inputs: Operand | None) -> Any:
    """To given sizes, or by given factors."""
    _require_plain(call)
    if call.version < 11:
        return upsample(call, x, *inputs)
    _roi, scales, sizes = (*inputs, None, None, None)[:3]
    axes = call.get("axes") or list(range(x.ndim))
    factors, goals = numbers(scales), numbers(sizes)
    rule = (
        call.get("mode", "nearest"),
        call.get("coordinate_transformation_mode", "half_pixel"),
        call.get("nearest_mode", "round_prefer_floor"),
    )
    for place, axis in enumerate(axes):
        size = goals[place] if goals else _scaled(x.shape[axis], factors[place])
        scale = factors[place] if factors else size / x.shape[axis]
        if not (isinstance(scale, float | int) and _is_one(scale)):
            x = _resized(call, x, axis % x.ndim, size, scale, rule)
    return x


def _require_plain(call: Call) -> None:
    odd = [
        name
        for name, plain in (
            ("antialias", 0),
            ("exclude_outside", 0),
            ("keep_aspect_ratio_policy", "stretch"),
        )
        if call.get(name, plain) != plain
    ]
    how = call.get("coordinate_transformation_mode", "half_pixel")
    if odd or how not in _EXACT:
        raise call.refusal(
            f"resizes with {odd[0] if odd else how}, which has no torch form here, wanted one of "
            f"{', '.join(_EXACT)}"
        )


def _is_one(scale: Any) -> bool:
    return isinstance(scale, float | int) and float(scale) == 1.0


def _scaled(size: Any, scale: Any) -> Any:
    if isinstance(scale, float) and scale.is_integer():
        return size * int(scale)  # Stays an integer expression where the size is a symbol.
    if isinstance(scale, float) and scale > 0 and (1 / scale).is_integer():
        return size // int(1 / scale)
    return int(size * scale) if isinstance(size, int) else sym_int(size * scale)


def _resized(
    call: Call, x: Tensor, axis: int, size: Any, scale: Any, rule: tuple[str, str, str]
) -> Any:
    mode, how, rounding = rule
    dtype = x.dtype if x.dtype.is_floating_point else torch.float32
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    places = torch.arange(size, device=x.device, dtype=wide)
    source = _coordinates(places, how, x.shape[axis], size, scale)
    if mode == "nearest":
        return _taken(x, axis, _rounded(source, rounding))
    first = torch.floor(source)
    offset = (source - first).to(dtype)
    if mode in ("linear", "bilinear"):
        weights = {0: 1 - offset, 1: offset}
    else:
        weights = _cubic(offset, call.get("cubic_coeff_a", -0.75))
    shape = [1] * x.ndim
    shape[axis] = -1
    total: Any = 0
    for step, weight in weights.items():
        total = total + _taken(x, axis, first + step) * weight.reshape(shape)
    return total.to(x.dtype)


def _coordinates(places: Tensor, how: str, before: Any, after: Any, scale: Any) -> Any:
    if how == "asymmetric":
        return places / scale
    if how == "align_corners":
        return places * (before - 1) / sym_max(after - 1, 1)
    if how == "pytorch_half_pixel" and isinstance(after, int) and after == 1:
        return torch.zeros_like(places)
    return (places + 0.5) / scale - 0.5


def _rounded(source: Tensor, how: str) -> Tensor:
    if how == "floor":
        return torch.floor(source)
    if how == "ceil":
        return torch.ceil(source)
    if how == "round_prefer_ceil":
        return torch.floor(source + 0.5)
    return torch.ceil(source - 0.5)


def _cubic(t: Tensor, a: float) -> dict[int, Tensor]:
    """Keys' kernel at the distances of the four neighbours."""

    def near(d: Tensor) -> Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return {-1: far(t + 1), 0: near(t), 1: near(1 - t), 2: far(2 - t)}


def _taken(x: Tensor, axis: int, source: Tensor) -> Tensor:
    index = source.clamp(min=0).clamp(max=x.shape[axis] - 1).long()
    return x.index_select(axis, index)
