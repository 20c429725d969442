"""Linear maps that are convolutions, as one kernel and one bias each; sums and chains of them.

    y = K * x + b                K (out, in / groups, *kernel),  b (out)

Everything that a branch of linear layers does to an input is of this form, so that branches fold:

    after a norm, in eval mode   K <- s K, b <- s (b - mean) + beta          s = gamma / sigma
    side by side                 K <- sum K_i, b <- sum b_i                  of kernels of one size
    one after the other          K <- K_2 . K_1, b <- K_2 b_1 + b_2    see `composed`

All of it is exact but for rounding; callers who fold give float64. Sums of kernels of unlike sizes
need them `centred`: zeros around a kernel change nothing where the padding grows alike
(RepVGG, arXiv 2101.03697; Diverse Branch Block, arXiv 2103.13425).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from opdf_compile.errors import InternalError


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution's numbers.

    Attributes:
        kernel: (out, in / groups, *kernel).
        bias: (out).
    """

    kernel: Tensor
    bias: Tensor

    def __add__(self, other: Convolution) -> Convolution:
        """Both beside each other; of one size, stride, padding and groups."""
        if self.kernel.shape != other.kernel.shape:
            raise InternalError(
                f"kernels of shapes {list(self.kernel.shape)} and {list(other.kernel.shape)} were "
                "to be added, wanted one shape; centre the smaller one first"
            )
        return Convolution(self.kernel + other.kernel, self.bias + other.bias)

    def scaled(self, scale: Tensor, shift: Tensor) -> Convolution:
        """What comes of it after ``y * scale + shift``, both (out)."""
        wide = scale.reshape(-1, *[1] * (self.kernel.ndim - 1))
        return Convolution(self.kernel * wide, self.bias * scale + shift)

    def centred(self, size: Sequence[int]) -> Convolution:
        """The same map with a kernel of a larger size, zeros around its own.

        Raises:
            InternalError: The sizes differ by an odd number, or the size is smaller.
        """
        own = self.kernel.shape[2:]
        margins = [wanted - found for wanted, found in zip(size, own, strict=True)]
        if any(margin < 0 or margin % 2 for margin in margins):
            raise InternalError(
                f"a kernel of size {list(own)} was to be centred in {list(size)}, wanted sizes "
                "that are larger by even numbers"
            )
        pads = [margin // 2 for margin in reversed(margins) for _side in range(2)]
        return Convolution(F.pad(self.kernel, pads), self.bias)

    def dilated(self, dilation: Sequence[int]) -> Convolution:
        """The same map with zeros written out between the taps (UniRepLKNet, arXiv 2311.15599)."""
        own = self.kernel.shape[2:]
        size = [d * (k - 1) + 1 for d, k in zip(dilation, own, strict=True)]
        kernel = self.kernel.new_zeros(*self.kernel.shape[:2], *size)
        taps = (slice(None), slice(None), *(slice(None, None, d) for d in dilation))
        kernel[taps] = self.kernel
        return Convolution(kernel, self.bias)


@dataclass(frozen=True, eq=False)
class Normalization:
    """A BatchNorm in eval mode, ``(y - mean) / sqrt(var + eps) * gamma + beta``; all (features).

    Attributes:
        gamma: Its weight.
        beta: Its bias.
        mean: Running mean.
        var: Running variance.
        eps: What is added to the variance.
    """

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor
    eps: float

    @property
    def sigma(self) -> Tensor:
        """What it divides by."""
        return torch.sqrt(self.var + self.eps)

    @property
    def scale(self) -> Tensor:
        """What it multiplies by: gamma / sigma."""
        return self.gamma / self.sigma

    @property
    def shift(self) -> Tensor:
        """What it makes of zero."""
        return self.beta - self.mean * self.scale

    def after(self, map_: Convolution) -> Convolution:
        """The map that is both, the norm last."""
        return map_.scaled(self.scale, self.shift)


def composed(first: Convolution, second: Convolution, groups: int = 1) -> Convolution:
    """Two convolutions of any sizes, of the same groups, the second one without padding.

        K[o, i, t] = sum over m and t_1 + t_2 = t of K_2[o, m, t_2] K_1[m, i, t_1]

    which is what a transposed convolution of K_1 with K_2 adds up. The sizes add to k_1 + k_2 - 1.
    The bias is b_2 + K_2 b_1, summed over m and all taps of K_2: at a border, too, the second one
    must read what the first one makes of zeros, which is its bias, and no zeros.

    Args:
        first: (middle, in / groups, *k_1).
        second: (out, middle / groups, *k_2); dilation written out, that by the first one's stride
            included.
        groups: Of both.
    """
    axes, inner = first.kernel.ndim - 2, second.kernel.shape[1]
    one = first.kernel.transpose(0, 1)
    two = second.kernel.reshape(groups, -1, *second.kernel.shape[1:])
    reach = two.flatten(3).sum(3) if two.ndim > 3 else two
    two = two.transpose(1, 2).flatten(0, 1)
    if axes == 0:  # Linear layers, as kernels of one tap.
        one, two = one.unsqueeze(-1), two.unsqueeze(-1)
    transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[max(axes, 1) - 1]
    kernel = transposed(one, two, groups=groups).transpose(0, 1)
    kernel = kernel if axes else kernel.squeeze(-1)
    bias = torch.einsum("gom,gm->go", reach, first.bias.reshape(groups, inner)).flatten()
    return Convolution(kernel, bias + second.bias)


def identity(channels: int, groups: int, axes: int, like: Tensor | None = None) -> Convolution:
    """The map that changes nothing, as a kernel of size 1.

    Args:
        channels: In and out.
        groups: Of the convolution it stands beside.
        axes: Number of spatial axes.
        like: Whose dtype and device it has; float64 on the CPU if None.
    """
    columns = channels // groups
    made = torch.zeros(0, dtype=torch.float64) if like is None else like
    eye = torch.eye(columns, dtype=made.dtype, device=made.device).repeat(groups, 1)
    return Convolution(eye.reshape(channels, columns, *[1] * axes), made.new_zeros(channels))


def average(
    channels: int, groups: int, size: Sequence[int], like: Tensor | None = None
) -> Convolution:
    """The mean over a window, channel by channel; arguments as of `identity`."""
    one = identity(channels, groups, len(size), like)
    taps = 1
    for axis_size in size:
        taps *= axis_size
    return Convolution(one.kernel.expand(-1, -1, *size) / taps, one.bias)
