"""Convolutions with their geometry: groups, stride, padding, dilation; sums and chains of them.

    sum      K_1 * x + K_2 * x          groups the greatest common divisor, strides equal, kernels
                                        centred in the larger one; 2 padding - span must agree
    chain    K_2 * (K_1 * x)            stride s_1 s_2, padding p_1 + s_1 p_2, taps of K_2 spread
                                        by s_1 (ExpandNets, arXiv 1811.10495; DBB, 2103.13425)

A chain is one convolution only where the second one's border reads what the first one makes of
zeros: it pads nothing, or the first one has one tap and no bias. Whether there is a bias is a
matter of form, not of value: what folds must not depend on how far the model is trained. A Linear
layer is a convolution without spatial axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from opdf_compile.errors import FoldError
from opdf_compile.tensor.convolutions import Convolution, composed, identity

Sizes = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LinearMap:
    """One convolution.

    Attributes:
        numbers: Kernel (out, in / groups, *kernel) and bias (out).
        groups: Of the kernel.
        stride: One number per spatial axis, as the next two.
        padding: Zeros at each end.
        dilation: Distance of two taps.
        biased: Whether the bias may be other than zero.
    """

    numbers: Convolution
    groups: int
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    biased: bool

    @property
    def size(self) -> Sizes:
        """Taps per spatial axis."""
        return tuple(self.numbers.kernel.shape[2:])

    @property
    def span(self) -> Sizes:
        """What the taps reach over, per spatial axis."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.size, strict=True))

    @property
    def cost(self) -> int:
        """Multiplications per place of the output."""
        return self.numbers.kernel.numel()

    def __neg__(self) -> LinearMap:
        """The map with the other sign."""
        numbers = Convolution(-self.numbers.kernel, -self.numbers.bias)
        return replace(self, numbers=numbers)

    def scaled(self, scale: Tensor, shift: Tensor | None = None) -> LinearMap:
        """What comes of it after ``y * scale + shift``, both (out)."""
        moved = torch.zeros_like(scale) if shift is None else shift
        numbers = self.numbers.scaled(scale, moved)
        return replace(self, numbers=numbers, biased=self.biased or shift is not None)

    def __add__(self, other: LinearMap) -> LinearMap:
        """Both beside each other.

        Raises:
            FoldError: No one convolution does that; the message is the reason.
        """
        if self.stride != other.stride:
            raise FoldError(
                f"two branches have the strides {list(self.stride)} and {list(other.stride)}"
            )
        rests = [
            tuple(2 * p - s for p, s in zip(m.padding, m.span, strict=True)) for m in (self, other)
        ]
        if rests[0] != rests[1]:
            raise FoldError(
                "the kernels of two branches do not share a centre: sizes "
                f"{list(self.span)} and {list(other.span)} with paddings {list(self.padding)} and "
                f"{list(other.padding)}"
            )
        groups = math.gcd(self.groups, other.groups)
        shifts = (abs(p - q) for p, q in zip(self.padding, other.padding, strict=True))
        units = _units(self, other, (1,) * len(self.size), tuple(shifts))
        one, two = (m.regrouped(groups)._in_steps(units) for m in (self, other))
        size = tuple(map(max, one.size, two.size))
        return replace(
            one,
            numbers=one.numbers.centred(size) + two.numbers.centred(size),
            padding=tuple(map(max, one.padding, two.padding)),
            biased=one.biased or two.biased,
        )

    def after(self, first: LinearMap) -> LinearMap:
        """The map that is both, this one last.

        Raises:
            FoldError: No one convolution does that; the message is the reason.
        """
        if self.is_per_channel:
            shift = self.numbers.bias if self.biased else None
            return first.scaled(self.numbers.kernel.flatten(), shift)
        if any(self.padding):
            self._require_border(first)
        groups = math.gcd(first.groups, self.groups)
        units = _units(first, self, first.stride, (0,) * len(self.size))
        spread = tuple(d * s for d, s in zip(self.dilation, first.stride, strict=True))
        one = first.regrouped(groups)._in_steps(units)
        two = replace(self.regrouped(groups), dilation=spread)._in_steps(units)
        paddings = zip(first.padding, self.padding, first.stride, strict=True)
        return LinearMap(
            composed(one.numbers, two.numbers, groups),
            groups,
            tuple(s * t for s, t in zip(first.stride, self.stride, strict=True)),
            tuple(p + q * s for p, q, s in paddings),
            units,
            first.biased or self.biased,
        )

    @property
    def is_per_channel(self) -> bool:
        """Whether it multiplies each channel by a number, place by place."""
        depthwise = self.groups == self.numbers.kernel.shape[0] == self.numbers.kernel.numel()
        return depthwise and set(self.stride) <= {1} and not any(self.padding)

    def _require_border(self, first: LinearMap) -> None:
        if first.biased:
            raise FoldError(
                "a convolution pads with zeros what a bias was added to, so that its border is no "
                "convolution of the input"
            )
        if any(span > 1 for span in first.span):
            raise FoldError(
                "a convolution pads with zeros what a larger kernel made, so that its border is "
                "no convolution of the input"
            )

    def regrouped(self, groups: int) -> LinearMap:
        """The same map written with fewer groups; zeros where groups did not see each other.

        Args:
            groups: A divisor of the groups that it has.
        """
        if groups == self.groups:
            return self
        kernel, ratio = self.numbers.kernel, self.groups // groups
        out, columns, *taps = kernel.shape
        own = kernel.reshape(groups, ratio, out // self.groups, columns, *taps)
        wide = kernel.new_zeros(groups, ratio, out // self.groups, ratio, columns, *taps)
        each = torch.arange(ratio)
        wide[:, each, :, each] = own.movedim(1, 0)
        numbers = Convolution(wide.reshape(out, ratio * columns, *taps), self.numbers.bias)
        return replace(self, numbers=numbers, groups=groups)

    def _in_steps(self, units: Sizes) -> LinearMap:
        """The same map with taps at other distances, which divide its own; zeros between them."""
        taps = zip(self.dilation, units, self.size, strict=True)
        ratios = [d // u if k > 1 else 1 for d, u, k in taps]
        numbers = self.numbers if set(ratios) <= {1} else self.numbers.dilated(ratios)
        return replace(self, numbers=numbers, dilation=units)


def _units(first: LinearMap, second: LinearMap, steps: Sizes, shifts: Sizes) -> Sizes:
    """Distances of taps in which two kernels can both be written, one per axis.

    Args:
        first: Its one tap, where it has one, stands anywhere.
        second: Likewise; its taps are further apart by `steps`.
        steps: One number per axis.
        shifts: How far apart the first taps of the two are.
    """
    found = []
    for axis, (step, shift) in enumerate(zip(steps, shifts, strict=True)):
        one = first.dilation[axis] if first.size[axis] > 1 else 0
        two = second.dilation[axis] * step if second.size[axis] > 1 else 0
        found.append(math.gcd(one, two, shift) or 1)
    return tuple(found)


def pointwise(channels: int, axes: int, like: Tensor | None = None) -> LinearMap:
    """The map that changes nothing, channel by channel; arguments as of `identity`."""
    ones = (1,) * axes
    return LinearMap(
        identity(channels, channels, axes, like), channels, ones, (0,) * axes, ones, False
    )
