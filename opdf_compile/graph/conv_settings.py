"""How a convolution is set: stride, zeros, gaps and groups, from its node or its arguments."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

_DEFAULTS: tuple[Any, ...] = (None, 1, 0, 1, 1)


def settings(convolution: Node) -> tuple[Any, ...]:
    """Bias, stride, padding, dilation and groups; what is left out has torch's default."""
    given = convolution.args[2:]
    named = ("bias", "stride", "padding", "dilation", "groups")
    rest = [
        convolution.kwargs.get(name, default)
        for name, default in zip(named, _DEFAULTS, strict=True)
    ]
    return (*given, *rest[len(given) :])


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
