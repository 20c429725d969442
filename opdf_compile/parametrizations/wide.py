"""A product of two factors, wider inside than the weight, after ExpandNets (arXiv 1811.10495).

    W = A B          A (m, h),   B (h, n),   h = r max(m, n)          m rows, n columns

The paper puts linear layers in place of one, r times as wide as its inputs and outputs, with r = 4.
Here they are two and in the hoisted form no layers but factors of the weight, so that the width
costs memory and the product, and no activations.

The start. With k = min(m, n) and the balanced factors of the SVD, W = (U S^(1/2)) (S^(1/2) V^T),

    A = [U S^(1/2), c P]          B = [S^(1/2) V^T; 0]          P (m, N),   N = h - k

Nothing is lost, because P meets zeros: A B = U S V^T whatever P is. Were both sides zero, neither
would ever move, as dL/dA = G B^T and dL/dB = A^T G. So one side is not: dL/dB = c P^T G there. P is
the first m rows of the orthogonal N x N matrix of the DCT-IV,

    P[i, j] = (2 / N)^(1/2) cos(pi (i + 1/2) (j + 1/2) / N)

for three reasons. P P^T = I, so that the first step of SGD is -lr (U S U^T G + G V S V^T + c^2 G):
beside what the balanced factors do it moves every direction alike. No two of its columns are equal;
rows of B that start at zero with equal columns in A would stay equal for ever, and so would copies
of the balanced factors. And it is written down: no random numbers are drawn. c^2 is the mean of the
singular values, 1 for the zero matrix, so that the padding learns as fast as they do on average.

Where N < m (r = 1 only) it has N columns of the m x m matrix: P^T P = I. A square weight with r = 1
is not padded at all, and is `svd`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import FoldError, PlanError
from opdf_compile.parametrizations.base import Parametrization, TensorShapes
from opdf_compile.parametrizations.matrix_spec import (
    MatrixSpec,
    WeightForm,
    as_weight,
    checked_matrix,
)
from opdf_compile.parametrizations.registry import register
from opdf_compile.parametrizations.request import Option
from opdf_compile.tensor import Cost, balanced_factors, cosine_frame

# The paper's.
USUAL_EXPANSION = 4
LARGEST_EXPANSION = 16


@dataclass(frozen=True)
class WideSpec(MatrixSpec):
    """A weight as the product of two wide factors.

    Attributes:
        expansion: r, the inner width over the larger side of the matrix, 1 to 16.

    Raises:
        PlanError: The expansion is no such number.
    """

    expansion: int = USUAL_EXPANSION

    def __post_init__(self) -> None:
        """Refuse what is not wider than the weight."""
        super().__post_init__()
        if type(self.expansion) is not int or not 1 <= self.expansion <= LARGEST_EXPANSION:
            raise PlanError(
                f"expansion is {self.expansion!r}, wanted a whole number from 1 to "
                f"{LARGEST_EXPANSION}; the paper's is {USUAL_EXPANSION}"
            )

    @property
    def inner(self) -> int:
        """h, the size of the axis that the factors share."""
        return self.expansion * max(self.rows, self.cols)


class Wide(Parametrization[WideSpec]):
    """W = A B, with factors (rows, h) and (h, cols)."""

    name = "wide"
    summary = "A B, inner size h = r max(rows, cols)"
    adds = "h (rows + cols) less the weight"
    source = "ExpandNets, arXiv 1811.10495"
    spec_type = WideSpec
    multilinear = True
    usual_cores = 2
    options = MappingProxyType(
        {"expansion": Option(int, USUAL_EXPANSION, "inner width over the larger side, 1 to 16")}
    )

    def decompose(
        self, weight: Tensor, spec: WideSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """The balanced factors, padded (see the top), computed in float64 and rounded once."""
        matrix = checked_matrix(weight, spec)
        with torch.no_grad():
            left, right = balanced_factors(matrix.to(device or weight.device, torch.float64))
            padding = spec.inner - left.shape[1]
            length = torch.linalg.vector_norm(left) / math.sqrt(left.shape[1])
            factors = (
                torch.cat([left, length * cosine_frame(spec.rows, padding, left)], 1),
                torch.cat([right, right.new_zeros(padding, spec.cols)]),
            )
            dtype = self.core_dtype(spec)
            return tuple(factor.to(weight.device, dtype).contiguous() for factor in factors)

    def compose(self, tensors: Sequence[Tensor], spec: WideSpec) -> Tensor:
        """The weight: one product."""
        left, right = tensors
        return as_weight(left @ right, spec)

    def shapes(self, spec: WideSpec) -> TensorShapes:
        """(rows, h) and (h, cols)."""
        return (spec.rows, spec.inner), (spec.inner, spec.cols)

    def describe(self, spec: WideSpec) -> str:
        """The factors' sizes: ``48x192 192x30``."""
        return f"{spec.rows}x{spec.inner} {spec.inner}x{spec.cols}"

    def cost(self, spec: WideSpec) -> Cost:
        """Exact cost of composing the weight once."""
        entries = math.prod(spec.shape)
        parameters = spec.inner * (spec.rows + spec.cols)
        forward = 2 * spec.inner * entries
        return Cost(
            parameters=parameters,
            added=parameters - entries,
            forward_flops=forward,
            backward_flops=2 * forward,
            largest_intermediate=entries,
        )

    def propose(self, form: WeightForm, *, cores: int = 2, **options: Any) -> WideSpec:
        """The paper's expansion, 4, or the one given.

        Raises:
            PlanError: Another number of cores is wanted.
        """
        self.require_usual(cores, "2 factors", "and ask for another width by wide(expansion=8)")
        return WideSpec.of(form, **options)

    def candidates(self, form: WeightForm, **options: Any) -> tuple[WideSpec, ...]:
        """Every expansion from 1 to 16; the one given alone."""
        if "expansion" in options:
            return super().candidates(form, **options)
        return tuple(WideSpec.of(form, expansion=r) for r in range(1, 1 + LARGEST_EXPANSION))

    def spec_of(self, shapes: TensorShapes, form: WeightForm) -> WideSpec:
        """The expansion of two factors.

        Raises:
            FoldError: They are no two matrices.
        """
        if [len(shape) for shape in shapes] != [2, 2]:
            raise FoldError(f"two matrices are wanted, found shapes {list(shapes)}")
        return WideSpec.of(form, expansion=shapes[0][1] // max(form.rows, form.cols))


register(Wide())
