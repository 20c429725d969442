"""DO-Conv: a convolution's kernel times a matrix of its own for each input channel.

    W[o, i, m] = sum_s (D_(b, i) + I)[m, s] W'[o, i, s]         b the group of the output o

m and s run over the M elements of the kernel, i over the I / g channels that a group reads; W' has
the weight's shape (O, I / g, M) and D the shape (I, M, M), one matrix per input channel. It is a
depthwise convolution in front of a convolution, multiplied out: arXiv 2006.12030, with D_mul = M.
The public code (github.com/yangyanli/DO-Conv) holds a fixed I beside a D that starts at 0, too.

The start is D = 0 and W' = W, so that not one bit is lost, and both move: dL/dW' = (I + D)^T G, and
dL/dD sums G W'^T over the outputs of the channel. Where W is zero D waits for W'. Decay of the
weight is decay of W'; D takes none.

A transposed convolution's weight (I, O / g, M) is that of the convolution it is the transpose of,
whose input channels are axis 1, as here. A kernel of one element has nothing to multiply: 1 x 1
convolutions and matrices are refused, as the paper leaves them plain.

It agrees where g is 1 or I = O = g. Between those the public code's reshape to (O / g, I, M) gives
the outputs of one group the matrices of others; here each output has those of its own inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from opdf_compile.errors import FoldError
from opdf_compile.parametrizations.base import ScalingTerm, TensorShapes
from opdf_compile.parametrizations.kernel_spec import KernelParametrization, KernelSpec
from opdf_compile.parametrizations.matrix_spec import WeightForm, checked_matrix
from opdf_compile.parametrizations.registry import register
from opdf_compile.tensor import Cost


@dataclass(frozen=True)
class DoConvSpec(KernelSpec):
    """A kernel and the groups that have matrices of their own; 1 shares D."""

    _owner: ClassVar[str] = "do_conv"

    @property
    def channels(self) -> int:
        """I, the channels that have a matrix."""
        return self.groups * self.shape[1]


class DoConv(KernelParametrization[DoConvSpec]):
    """W = W' + D W', two tensors: the kernel, and a matrix for each of its input channels."""

    name = "do_conv"
    summary = "sum_s (D_i + I)[m, s] W'[o, i, s], kernels only"
    adds = "M^2 per input channel, M the kernel's elements"
    source = "DO-Conv, arXiv 2006.12030"
    spec_type = DoConvSpec
    usual_cores = 2

    def decompose(
        self, weight: Tensor, spec: DoConvSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """The weight itself and zeros; nothing is factorised, on no device."""
        checked_matrix(weight, spec)
        kernel = weight.detach().to(self.core_dtype(spec))
        return (
            # A copy, because a float32 weight would be its own core.
            kernel.clone(memory_format=torch.contiguous_format),
            kernel.new_zeros(self.shapes(spec)[1]),
        )

    def compose(self, tensors: Sequence[Tensor], spec: DoConvSpec) -> Tensor:
        """The weight: a product per channel, added to the kernel."""
        kernel, matrices = tensors
        grouped = kernel.reshape(spec.groups, -1, spec.shape[1], spec.kernel)
        matrices = matrices.reshape(spec.groups, spec.shape[1], spec.kernel, spec.kernel)
        change = torch.einsum("gims,gois->goim", matrices, grouped)
        weight = kernel + change.reshape(spec.shape)
        return weight.contiguous().to(getattr(torch, spec.dtype))

    def shapes(self, spec: DoConvSpec) -> TensorShapes:
        """The weight's own shape, and (I, M, M)."""
        return spec.shape, (spec.channels, spec.kernel, spec.kernel)

    def terms(self, spec: DoConvSpec) -> tuple[ScalingTerm, ...]:
        """The weight is linear in the kernel for any D, which keeps its size."""
        return ({0: 1.0, 1: 0.0},)

    def describe(self, spec: DoConvSpec) -> str:
        """The matrices: ``D 16x9x9``."""
        return f"D {spec.channels}x{spec.kernel}x{spec.kernel}"

    def cost(self, spec: DoConvSpec) -> Cost:
        """Exact cost of composing the weight once; the sum is one FLOP per entry."""
        entries = math.prod(spec.shape)
        added = spec.channels * spec.kernel**2
        products = 2 * entries * spec.kernel
        return Cost(
            parameters=entries + added,
            added=added,
            forward_flops=products + entries,
            backward_flops=2 * products,
            largest_intermediate=entries,
        )

    def spec_of(self, shapes: TensorShapes, form: WeightForm) -> DoConvSpec:
        """The groups that so many matrices have.

        Raises:
            FoldError: They are no kernel and matrices.
        """
        if len(shapes) != 2 or len(shapes[1]) != 3:
            raise FoldError(f"a kernel and a stack of matrices are wanted, found {list(shapes)}")
        return DoConvSpec.of(form, groups=shapes[1][0] // form.shape[1])


register(DoConv())
