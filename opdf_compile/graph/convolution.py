"""Convolutions of a graph: their operators, and how one is set."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.fx import Node

from opdf_compile.graph.op_arguments import arguments

_ATEN = torch.ops.aten

# The operator for each number of spatial axes, and that number for each operator.
CONVOLVE: dict[int, Any] = {
    1: _ATEN.conv1d.default,
    2: _ATEN.conv2d.default,
    3: _ATEN.conv3d.default,
}
CONVOLUTIONS: dict[Any, int] = {
    **{operator: axes for axes, operator in CONVOLVE.items()},
    _ATEN.conv1d.padding: 1,
    _ATEN.conv2d.padding: 2,
    _ATEN.conv3d.padding: 3,
}


class Geometry(NamedTuple):
    """How a convolution is set.

    Attributes:
        stride: Per axis, as padding and dilation are.
        padding: Zeros on each side; -1 where "same" puts unlike numbers on the two sides.
        dilation: Steps between taps.
        groups: One number.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def geometry(convolution: Node, kernel: tuple[int, ...]) -> Geometry:
    """How a node sets one of `CONVOLUTIONS`, where its kernel has so many taps per axis."""
    given = arguments(convolution)
    stride, dilation = (per_axis(given[name], len(kernel)) for name in ("stride", "dilation"))
    padding = zeros_around(given["padding"], kernel, dilation)
    return Geometry(stride, padding, dilation, given["groups"])


def convolution_groups(node: Node) -> int:
    """The groups of a convolution, a transposed one too; 1 of every other op."""
    given = arguments(node)
    found = given.get("groups") if "weight" in given else None
    return found if isinstance(found, int) else 1


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """One number for each axis, where one may stand for all."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * axes if len(values) == 1 else values


def zeros_around(
    padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    """Zeros on each side; -1 where "same" puts unlike numbers on the two sides.

    Args:
        padding: As torch takes it: numbers, "same" or "valid".
        kernel: Taps per axis.
        dilation: Steps between them.
    """
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple(-1 if r % 2 else r // 2 for r in reach)
    return per_axis(padding, len(kernel))
