"""A deep linear chain of low rank on the leading singular directions, beside a residual.

    W = R + F_1 F_2 .. F_L          F_1 (rows, r),  F_2 .. F_(L-1) (r, r),  F_L (r, cols)

Deep linear factors that are trained from a spectral start move in an r-dimensional subspace only,
so that L factors of full size can be replaced by two thin and L - 2 small ones, the thin ones at a
larger learning rate (arXiv 2311.05061). Alone they have rank r and cannot hold a trained weight.
Expanding must lose nothing, so here they start as the r leading singular triplets of W, balanced,

    F_1 = U_r S_r^(1/L),   F_l = S_r^(1/L),   F_L = S_r^(1/L) V_r^T,   R = W - F_1 .. F_L

and R, trained like everything else, has the remaining singular values and every direction that
the chain has not. The middle factors cost r^2 parameters instead of the MPO's D^2.

Where a singular value is zero F_L is zero and the other factors are not, so that F_L has a
gradient. The matrix is the weight as it is stored: the sum does not ask which axis is called rows.
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
from opdf_compile.parametrizations import matrix_spec
from opdf_compile.parametrizations.base import Parametrization, ScalingTerm, TensorShapes
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm
from opdf_compile.parametrizations.registry import register
from opdf_compile.parametrizations.request import Option
from opdf_compile.tensor import (
    MAX_CORES,
    Cost,
    balanced_factors,
    compose,
    contraction_order,
)

USUAL_DEPTH = 3
# The thin factors' learning rate over that of the others; a plan may have another.
USUAL_OUTER_RATE = 5.0
# The usual rank is the smaller size over this.
_THIN = 4
# So many steps from rank 1 to the full rank.
_FILL = 23


@dataclass(frozen=True)
class SpectralSpec(MatrixSpec):
    """A residual and a chain.

    Attributes:
        rank: r, at most the smaller size of the matrix.
        depth: L, the number of factors, 2 or more.
        outer_rate: Learning rate of the first and the last factor over that of all others.

    Raises:
        PlanError: A number is out of its range.
    """

    rank: int = 1
    depth: int = USUAL_DEPTH
    outer_rate: float = USUAL_OUTER_RATE

    def __post_init__(self) -> None:
        """Refuse what is no chain."""
        super().__post_init__()
        bounds = (("rank", self.rank, 1, min(self.stored)), ("depth", self.depth, 2, MAX_CORES - 1))
        for name, value, least, most in bounds:
            if type(value) is not int or not least <= value <= most:
                raise PlanError(
                    f"{name} is {value!r}, wanted {least} to {most} for a weight of shape "
                    f"{list(self.shape)}"
                )
        rate = self.outer_rate
        if type(rate) not in (int, float) or not 0 < rate < math.inf:
            raise PlanError(f"outer_rate is {rate!r}, wanted a positive number; 1 is no difference")

    @property
    def bonds(self) -> tuple[int, ...]:
        """d_0 .. d_L of the chain: the rank between factors, 1 at both ends."""
        return (1, *(self.rank,) * (self.depth - 1), 1)

    @property
    def products(self) -> tuple[int, ...]:
        """Open sizes of the chain's factors."""
        return (self.stored[0], *(1,) * (self.depth - 2), self.stored[1])


class Spectral(Parametrization[SpectralSpec]):
    """W = R + F_1 .. F_L, 1 + L matrices."""

    name = "spectral"
    spec_type = SpectralSpec
    usual_cores = 1 + USUAL_DEPTH
    options = MappingProxyType(
        {
            "cores": Option(int, usual_cores, "the residual and the factors, 3 to 64"),
            "rank": Option(int, None, "inner size; a quarter of the full rank if not given"),
            "outer_rate": Option(
                float, USUAL_OUTER_RATE, "rate of the thin factors over the others'"
            ),
        }
    )

    def decompose(
        self, weight: Tensor, spec: SpectralSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """Factors of the leading singular triplets, and what W has beside their rounded product."""
        matrix_spec.checked_matrix(weight, spec)
        dtype = self.core_dtype(spec)
        with torch.no_grad():
            wide = weight.detach().to(device=device or weight.device, dtype=torch.float64)
            matrix = wide.reshape(spec.stored)
            left, right = balanced_factors(matrix)
            left, right = left[:, : spec.rank], right[: spec.rank]
            # U S^(1/2) has columns of length s^(1/2); a null direction has one too, and a zero row.
            roots = torch.linalg.vector_norm(left, dim=0)
            thin = roots.pow(2 / spec.depth - 1)
            middle = torch.diag(roots.pow(2 / spec.depth))
            chain = [left * thin, *[middle] * (spec.depth - 2), right * thin[:, None]]
            rounded = [factor.to(dtype) for factor in chain]
            rest = matrix - _product([factor.double() for factor in rounded], spec)
            made = [rest.to(dtype), *rounded]
            # Copies, because the middle factors start as one tensor.
            return tuple(
                tensor.to(weight.device).clone(memory_format=torch.contiguous_format)
                for tensor in made
            )

    def compose(self, tensors: Sequence[Tensor], spec: SpectralSpec) -> Tensor:
        """The weight: the chain multiplied out in the cheapest order, and the residual added."""
        residual, *chain = tensors
        weight = (residual + _product(chain, spec)).reshape(spec.shape)
        return weight.to(getattr(torch, spec.dtype))

    def shapes(self, spec: SpectralSpec) -> TensorShapes:
        """(rows, cols), (rows, r), (r, r) .., (r, cols)."""
        (rows, cols), rank = spec.stored, spec.rank
        return (rows, cols), (rows, rank), *((rank, rank),) * (spec.depth - 2), (rank, cols)

    def terms(self, spec: SpectralSpec) -> tuple[ScalingTerm, ...]:
        """The residual by itself, the factors evenly."""
        return {0: 1.0}, dict.fromkeys(range(1, 1 + spec.depth), 1 / spec.depth)

    def rates(self, spec: SpectralSpec) -> tuple[float, ...]:
        """The thin factors at their own rate."""
        outer = float(spec.outer_rate)
        return (1.0, outer, *(1.0,) * (spec.depth - 2), outer)

    def describe(self, spec: SpectralSpec) -> str:
        """Rank and depth: ``+ rank 12, depth 3``."""
        return f"+ rank {spec.rank}, depth {spec.depth}"

    def cost(self, spec: SpectralSpec) -> Cost:
        """Exact cost of composing the weight once; adding the residual is one FLOP per entry."""
        order = contraction_order(spec.bonds, spec.products)
        entries = math.prod(spec.shape)
        parameters = sum(math.prod(shape) for shape in self.shapes(spec))
        return Cost(
            parameters=parameters,
            added=parameters - entries,
            forward_flops=2 * order.multiply_adds + entries,
            backward_flops=4 * order.multiply_adds,
            largest_intermediate=max(entries, *(step.result for step in order)),
        )

    def propose(
        self, form: WeightForm, *, cores: int = 1 + USUAL_DEPTH, **options: Any
    ) -> SpectralSpec:
        """A quarter of the full rank; the residual counts as one of the cores.

        Raises:
            PlanError: The number of cores is not 3 to 64.
        """
        if type(cores) is not int or not 3 <= cores <= MAX_CORES:
            raise PlanError(
                f"spectral has a residual and 2 factors or more, found cores={cores!r}; give 3 to "
                f"{MAX_CORES}, or leave cores out"
            )
        usual = {"rank": max(1, min(form.stored) // _THIN)}
        return SpectralSpec.of(form, depth=cores - 1, **usual | options)

    def candidates(self, form: WeightForm, **options: Any) -> tuple[SpectralSpec, ...]:
        """The usual depth at ranks from 1 to the full one, at about equal ratios; else as given."""
        if "rank" in options:
            return super().candidates(form, **options)
        full = min(form.stored)
        ranks = {round(full ** (k / _FILL)) for k in range(1 + _FILL)} | {max(1, full // _THIN)}
        return tuple(SpectralSpec.of(form, rank=rank, **options) for rank in sorted(ranks))

    def spec_of(self, shapes: TensorShapes, form: WeightForm) -> SpectralSpec:
        """Rank and depth of a residual and a chain, with the usual rates.

        Raises:
            FoldError: They are no such matrices.
        """
        if len(shapes) < 3 or any(len(shape) != 2 for shape in shapes):
            raise FoldError(f"a residual and 2 matrices or more are wanted, found {list(shapes)}")
        return SpectralSpec.of(form, rank=shapes[1][1], depth=len(shapes) - 1)


def _product(chain: Sequence[Tensor], spec: SpectralSpec) -> Tensor:
    """The factors multiplied out: an MPO whose outer cores have one open mode each."""
    (rows, cols), rank = spec.stored, spec.rank
    first, *middle, last = chain
    cores = [
        first.reshape(1, rows, 1, rank),
        *(factor.reshape(rank, 1, 1, rank) for factor in middle),
        last.reshape(rank, 1, cols, 1),
    ]
    return compose(cores)


register(Spectral())
