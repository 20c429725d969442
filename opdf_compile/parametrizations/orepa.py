"""OREPA: the linear branches of a convolution block, summed in the space of kernels.

    W[o] = v0 K  +  v1 A 1/M  +  v2 P cos_o  +  v3 C tap  +  v4 (I + D) K2  +  v5 sum_t p_t d_t

Each v is a vector with one gain per output o. The branches of W[o, i, m], i over the I / g channels
of a group, m over the M elements of the kernel:

    v0  K[o, i, m]                                a kernel of its own
    v1  A[o, i] / M                               1 x 1, then the mean over the kernel
    v2  P[o, i] cos_o[m]                          1 x 1, then a fixed cosine along an axis
    v3  C[o, i] where m is the middle, else 0     1 x 1
    v4  sum_t (I + D)[b, t, i] K2[o, t, m]        1 x 1, then a kernel; b the group of o
    v5  sum_t p[o, i, t] d[b, i, t, m]            8 depthwise kernels per channel, then 1 x 1

arXiv 2204.00826, which has them in this space so that a training step convolves once, and gains in
place of the branches' batch statistics. Read against the public code (github.com/JUGGHM/
OREPA_CVPR2022): T = I / g channels inside v4, twice as many in more than 4 groups; cos_o has the
frequency o + 1 along the first axis for the first half of the outputs and begins again along the
next axis for the others. There the gains are v0 = 1/4, v1 = 1/4, v2 = 0, v3 = 1, v4 = 1/2, v5 = 1/2
at the start, and the tensors random. Sizes that the public code does not have are meant as it is
written: the period of cos_o is the axis' own size, not 3, and with d axes each has its d-th of the
outputs; the middle of an even size is the later one.

The start loses nothing, and no random numbers are drawn: all but K are corners of an orthogonal
cosine matrix (`tensor.cosine_frame`), each as large against a kernel of W's size as He's rule makes
it, so that no branch is zero along with its gain and stays so. D = 0.

    start = "weight"    v0 = 1, the other gains 0, K = W: bit for bit
    start = "paper"     the paper's gains, and K = (W - all other branches) / v0

Decay of the weight is decay of K, A, P, C, K2 and p; gains, D and d take none. The gains sum their
gradient over a whole filter, so that a clip norm leaves them out.

A transposed convolution's weight (I, O / g, M) is that of the convolution it is the transpose of:
its gains are those of the input channels. A kernel of one element has no branches and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from opdf_compile.errors import FoldError, InputError, PlanError
from opdf_compile.parametrizations.base import ScalingTerm, TensorShapes
from opdf_compile.parametrizations.kernel_spec import KernelParametrization, KernelSpec
from opdf_compile.parametrizations.matrix_spec import WeightForm, checked_matrix
from opdf_compile.parametrizations.registry import register
from opdf_compile.parametrizations.request import Option
from opdf_compile.tensor import Cost, cosine_frame

# v0 .. v5 at the start.
STARTS = {
    "weight": (1.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "paper": (0.25, 0.25, 0.0, 1.0, 0.5, 0.5),
}
# Depthwise kernels per channel, the paper's.
_DEPTHWISE = 8
# Of more groups than these the paper makes the inside of v4 twice as wide.
_NARROW_GROUPS = 4
# Beside larger weights branches stay at this size: their products must not overflow.
_LARGEST = 1e18


@dataclass(frozen=True)
class OrepaSpec(KernelSpec):
    """A kernel, its groups, and where its gains start.

    Attributes:
        start: "weight" or "paper", see the top; a fold does not ask.

    Raises:
        PlanError: There is no such start.
    """

    start: str = "weight"

    _owner: ClassVar[str] = "orepa"

    def __post_init__(self) -> None:
        """Refuse a start that is none."""
        super().__post_init__()
        if self.start not in STARTS:
            raise PlanError(f"start is {self.start!r}, wanted one of {', '.join(STARTS)}")

    @property
    def channels(self) -> int:
        """I / g, the channels of a group."""
        return self.shape[1]

    @property
    def folds(self) -> int:
        """How many times as wide as its input v4 is inside."""
        return 1 if self.groups <= _NARROW_GROUPS else 2

    @property
    def inner(self) -> int:
        """T, the channels of a group inside v4."""
        return self.folds * self.channels


class Orepa(KernelParametrization[OrepaSpec]):
    """W = the sum of six branches with a gain per output; seven tensors.

    They are K, v (6, O), the three 1 x 1 branches (O, 3, I / g), D, K2, p and d, in this order.
    """

    name = "orepa"
    summary = "six branches with a gain per output, kernels only"
    adds = (
        "another kernel (two in more than 4 groups), 6 per output, 11 per pair of "
        "channels, 8 M + T per input channel"
    )
    source = "OREPA, arXiv 2204.00826"
    spec_type = OrepaSpec
    usual_cores = 7
    options = MappingProxyType(
        {
            "start": Option(
                tuple(STARTS), "weight", "gains of the weight alone, or the paper's; neither loses"
            )
        }
    )

    def decompose(
        self, weight: Tensor, spec: OrepaSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """The cosines, and the kernel that is left beside them; computed in float64."""
        checked_matrix(weight, spec)
        dtype = self.core_dtype(spec)
        with torch.no_grad():
            wide = weight.detach().to(device=device or weight.device, dtype=torch.float64)
            others = [tensor.to(dtype) for tensor in _started(wide, spec)]
            gains = STARTS[spec.start]
            kernel = wide
            if any(gains[1:]):
                bare = [torch.zeros_like(wide), *(tensor.double() for tensor in others)]
                kernel = (wide - self.compose(bare, spec.with_dtype("float64"))) / gains[0]
            made = [kernel.to(dtype), *others]
            if not torch.isfinite(made[0]).all():
                raise InputError(
                    f"the largest entries of the weight are too large for start={spec.start!r}, "
                    "which divides them by a gain below 1; take start='weight'"
                )
            return tuple(
                # A copy, because a float32 weight would be its own core.
                tensor.to(weight.device).clone(memory_format=torch.contiguous_format)
                for tensor in made
            )

    def compose(self, tensors: Sequence[Tensor], spec: OrepaSpec) -> Tensor:
        """The weight: three batched products, and sums of kernels."""
        kernel, gains, thin, change, second, points, depths = tensors
        outputs, channels, size = spec.shape[0], spec.channels, spec.kernel
        by_group = (spec.groups, outputs // spec.groups)
        v = gains.reshape(6, outputs, 1, 1)
        thin = v[1:4, :, 0].transpose(0, 1) * thin
        pointwise = torch.einsum("obi,obm->oim", thin, _shapes_of_points(gains, spec))
        grouped = second.reshape(*by_group, spec.inner, size)
        mixed = torch.einsum("gti,gotm->goim", change, grouped)
        mixed = mixed.reshape(outputs, channels, size)
        mixed = mixed + second.reshape(outputs, spec.folds, channels, size).sum(1)
        depthwise = torch.einsum(
            "goit,gitm->goim",
            points.reshape(*by_group, channels, _DEPTHWISE),
            depths.reshape(spec.groups, channels, _DEPTHWISE, size),
        ).reshape(outputs, channels, size)
        made = v[0] * kernel.reshape(outputs, channels, size) + pointwise
        made = made + v[4] * mixed + v[5] * depthwise
        return made.reshape(spec.shape).contiguous().to(getattr(torch, spec.dtype))

    def shapes(self, spec: OrepaSpec) -> TensorShapes:
        """Those of K, v, the 1 x 1 branches, D, K2, p and d."""
        outputs, channels, size = spec.shape[0], spec.channels, spec.kernel
        return (
            spec.shape,
            (6, outputs),
            (outputs, 3, channels),
            (spec.groups, spec.inner, channels),
            (outputs, spec.inner, size),
            (outputs, channels, _DEPTHWISE),
            (spec.groups * channels, _DEPTHWISE, size),
        )

    def terms(self, spec: OrepaSpec) -> tuple[ScalingTerm, ...]:
        """A factor on the tensor that each branch is linear in; v, D and d keep their size."""
        return {0: 1.0, 1: 0.0}, {2: 1.0}, {4: 1.0, 3: 0.0}, {5: 1.0, 6: 0.0}

    def outside_clip_norm(self, spec: OrepaSpec) -> tuple[int, ...]:
        """The gains."""
        return (1,)

    def describe(self, spec: OrepaSpec) -> str:
        """The gains, and the width inside v4: ``6 x 16 gains, inner 4``."""
        return f"6 x {spec.shape[0]} gains, inner {spec.groups * spec.inner}"

    def cost(self, spec: OrepaSpec) -> Cost:
        """The products exactly; of what goes entry by entry the gains and the sums of kernels."""
        entries = math.prod(spec.shape)
        parameters = sum(map(math.prod, self.shapes(spec)))
        # The cosines that the first is multiplied by are no tensor of ours: no gradient.
        points, depthwise = 2 * 3 * entries, 2 * _DEPTHWISE * entries
        # With one channel inside there is nothing to sum over, and no matrix product.
        mixed = 2 * spec.inner * entries if spec.inner > 1 else 0
        gained = 3 * entries // spec.kernel + 3 * entries
        return Cost(
            parameters=parameters,
            added=parameters - entries,
            forward_flops=points + mixed + depthwise + gained + (3 + spec.folds) * entries,
            backward_flops=points + 2 * (mixed + depthwise),
            largest_intermediate=entries,
            # A gain multiplies what each of them makes.
            again_flops=points + mixed + depthwise,
        )

    def spec_of(self, shapes: TensorShapes, form: WeightForm) -> OrepaSpec:
        """The groups that D tells.

        Raises:
            FoldError: They are not seven tensors with a D among them.
        """
        if len(shapes) != 7 or len(shapes[3]) != 3:
            raise FoldError(f"a kernel, gains and five branches are wanted, found {list(shapes)}")
        return OrepaSpec.of(form, groups=shapes[3][0])


def _started(weight: Tensor, spec: OrepaSpec) -> Iterator[Tensor]:
    """All tensors but K: v, the 1 x 1 branches, D, K2, p and d, in float64."""
    outputs, channels, size = spec.shape[0], spec.channels, spec.kernel
    gains = STARTS[spec.start]
    largest = float(weight.abs().max())
    norm = float(torch.linalg.vector_norm(weight / (largest or 1.0)))
    rms = min(largest * norm / math.sqrt(weight.numel()), _LARGEST)

    def frame(rows: int, columns: int, factor: float, *branches: int) -> Tensor:
        """Cosines `factor` times as large as W; as He's rule has it where W = 0 allows any."""
        free = not any(gains[branch] for branch in branches)
        of = rms or (math.sqrt(2 / (channels * size)) if free else 0.0)
        scale = of * factor * math.sqrt(max(rows, columns))
        return scale * cosine_frame(rows, columns, weight)

    yield weight.new_ones(6, outputs) * _column(gains, weight)
    thin = [frame(outputs, channels, math.sqrt(size), branch) for branch in (1, 2, 3)]
    yield torch.stack(thin, 1)
    yield weight.new_zeros(spec.groups, spec.inner, channels)
    yield frame(outputs, spec.inner * size, spec.folds**-0.5, 4).reshape(outputs, -1, size)
    points = frame(outputs, channels * _DEPTHWISE, math.sqrt(size / _DEPTHWISE), 5)
    yield points.reshape(outputs, channels, -1)
    taps = math.sqrt(2 / size * max(_DEPTHWISE, size)) * cosine_frame(_DEPTHWISE, size, weight)
    yield taps.expand(spec.groups * channels, -1, -1)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _shapes_of_points(like: Tensor, spec: OrepaSpec) -> Tensor:
    """What the three 1 x 1 branches of each output are in the kernel: (O, 3, M)."""
    outputs, size = spec.shape[0], spec.kernel
    middle = 0
    for axis in spec.shape[2:]:
        middle = middle * axis + axis // 2
    even = like.new_ones(outputs, size) / size
    before, after = like.new_zeros(outputs, middle), like.new_zeros(outputs, size - middle - 1)
    tap = torch.cat([before, like.new_ones(outputs, 1), after], 1)
    return torch.stack([even, _waves(like, spec), tap], 1)


def _waves(like: Tensor, spec: OrepaSpec) -> Tensor:
    """cos(pi (h + 1/2) f / k) along one axis of the kernel, of size k, for each output: (O, M).

    With O outputs and d axes, axis a has those from a O / d on, and f = 1 + o - a O / d. Angles are
    counted in whole steps of pi / (2 d k) and taken modulo a turn, or large f would lose digits.
    """
    outputs, axes = spec.shape[0], spec.shape[2:]
    blocks = []
    for axis, size in enumerate(axes):
        first, last = (-(-place * outputs // len(axes)) for place in (axis, axis + 1))
        turn = 4 * len(axes) * size
        frequency = _counted(like, last - first) + (first + 1)
        steps = (frequency * len(axes) - axis * outputs) % turn
        taps = 2 * _counted(like, size) + 1
        wave = torch.cos((steps[:, None] * taps) % turn * (2 * math.pi / turn))
        form: list[Any] = [last - first, *(1,) * len(axes)]
        form[1 + axis] = size
        blocks.append(wave.reshape(form).expand(-1, *axes).reshape(-1, spec.kernel))
    return torch.cat(blocks)


def _counted(like: Tensor, size: int) -> Tensor:
    """0 .. size - 1, where a tensor lives and in its dtype, whatever a graph was traced with."""
    return like.new_ones(size).cumsum(0) - 1


register(Orepa())
