"""A deep linear chain of low rank on the leading singular directions, beside a residual.

    W = R + F_1 F_2 .. F_L          F_1 (rows, r),  F_2 .. F_(L-1) (r, r),  F_L (r, cols)

Deep linear factors that are trained from a spectral start move in an r-dimensional subspace only,
so that L factors of full size can be replaced by two thin and L - 2 small ones, the thin ones at a
larger learning rate (arXiv 2311.05061). Alone they have rank r and cannot hold a trained weight.
Expanding must lose nothing, so here they start as the r leading singular triplets of W, balanced,

    F_1 = U_r S_r^(1/L),   F_l = S_r^(1/L),   F_L = S_r^(1/L) V_r^T,   R = W - F_1 .. F_L

and R has the remaining singular values and every direction that the chain has not. The middle
factors cost r^2 parameters instead of the MPO's D^2.

    residual = "trained"    R is trained like everything else: no direction is closed
    residual = "frozen"     R stays, and W moves in the chain alone
    residual = "none"       no R: the paper's own form, for weights of rank r; all ranks by default

Where a singular value is zero F_L is zero and the other factors are not, so that F_L has a
gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from opdf_compile.errors import InputError, PlanError
from opdf_compile.parametrizations import matrix_spec
from opdf_compile.parametrizations.base import TensorShapes
from opdf_compile.parametrizations.matrix_spec import WeightForm
from opdf_compile.parametrizations.registry import register
from opdf_compile.parametrizations.request import Option
from opdf_compile.parametrizations.residual_chain import (
    USUAL_DEPTH,
    ChainSpec,
    ResidualChain,
    completed,
    rank_and_depth,
    rank_of,
    require_depth,
    usual_ranks,
)
from opdf_compile.tensor import balanced_factors

# The thin factors' learning rate over that of the others; a plan may have another.
USUAL_OUTER_RATE = 5.0
# The usual rank is the smaller size over this.
_THIN = 4
RESIDUALS = ("trained", "frozen", "none")
# What a chain alone may lose of a weight's norm.
_LOST = 1e-6


@dataclass(frozen=True)
class SpectralSpec(ChainSpec):
    """A residual and a chain.

    Attributes:
        residual: "trained", "frozen" or "none".
        outer_rate: Learning rate of the first and the last factor over that of all others.

    Raises:
        PlanError: The rate is no positive number, or the residual is none of the three.
    """

    residual: str = "trained"
    outer_rate: float = USUAL_OUTER_RATE

    _later: ClassVar[tuple[str, ...]] = (*ChainSpec._later, "residual")

    def __post_init__(self) -> None:
        """Refuse what is no rate and no residual."""
        super().__post_init__()
        rate = self.outer_rate
        if type(rate) not in (int, float) or not 0 < rate < math.inf:
            raise PlanError(f"outer_rate is {rate!r}, wanted a positive number; 1 is no difference")
        if self.residual not in RESIDUALS:
            raise PlanError(f"residual is {self.residual!r}, wanted one of {', '.join(RESIDUALS)}")
        if not self.beside and self.depth == 2:
            raise PlanError(
                "two factors without a residual are the parametrization svd, wanted 3 or more; "
                "take svd"
            )

    @property
    def beside(self) -> int:
        """Whether there is a residual."""
        return int(self.residual != "none")

    @property
    def still(self) -> bool:
        """Whether the residual is kept as it is."""
        return self.residual == "frozen"


class Spectral(ResidualChain[SpectralSpec]):
    """W = R + F_1 .. F_L, 1 + L matrices; L without a residual."""

    name = "spectral"
    summary = "R + F_1 F_2 .. F_L, inner size r"
    adds = "r (rows + cols) + (L - 2) r^2"
    source = "arXiv 2311.05061"
    spec_type = SpectralSpec
    usual_cores = 1 + USUAL_DEPTH
    options = MappingProxyType(
        {
            "cores": Option(int, usual_cores, "the residual, if any, and the factors, 3 to 64"),
            "rank": Option(
                int, None, "inner size; without it a quarter of the full rank, residual=none all"
            ),
            "outer_rate": Option(
                float, USUAL_OUTER_RATE, "rate of the thin factors over the others'"
            ),
            "residual": Option(RESIDUALS, "trained", "what becomes of the rest of the weight"),
        }
    )

    def decompose(
        self, weight: Tensor, spec: SpectralSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """Factors of the leading singular triplets, and what W has beside their rounded product.

        Raises:
            InputError: There is no residual, and W has more than the chain can hold.
        """
        matrix_spec.checked_matrix(weight, spec)
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
            made = completed(matrix, chain, spec, self.core_dtype(spec))
            if not spec.beside:
                _require_nothing_left(made[0], matrix, spec)
            return tuple(tensor.to(weight.device) for tensor in made[1 - spec.beside :])

    def rates(self, spec: SpectralSpec) -> tuple[float, ...]:
        """The thin factors at their own rate."""
        outer = float(spec.outer_rate)
        return (*(1.0,) * spec.beside, outer, *(1.0,) * (spec.depth - 2), outer)

    def describe(self, spec: SpectralSpec) -> str:
        """Rank and depth: ``+ rank 12, depth 3``; what is special of the residual."""
        chain = f"rank {spec.rank}, depth {spec.depth}"
        return {"trained": f"+ {chain}", "frozen": f"frozen + {chain}"}.get(spec.residual, chain)

    def propose(
        self, form: WeightForm, *, cores: int = 1 + USUAL_DEPTH, **options: Any
    ) -> SpectralSpec:
        """A quarter of the full rank, all of it without a residual, which counts as a core.

        Raises:
            PlanError: The number of cores is not 3 to 64.
        """
        alone = options.get("residual") == "none"
        full = min(form.stored)
        rank = rank_of(form, options, full if alone else max(1, full // _THIN))
        depth = require_depth(self.name, "a residual", cores) + alone
        return SpectralSpec.of(form, **{**options, "depth": depth, "rank": rank})

    def candidates(self, form: WeightForm, **options: Any) -> tuple[SpectralSpec, ...]:
        """The usual depth at ranks from 1 to the full one, at about equal ratios; else as given.

        Without a residual any other rank than the full one would lose something.
        """
        if "rank" in options or options.get("residual") == "none":
            return super().candidates(form, **options)
        ranks = usual_ranks(form, max(1, min(form.stored) // _THIN))
        return tuple(SpectralSpec.of(form, rank=rank, **options) for rank in ranks)

    def spec_of(self, shapes: TensorShapes, form: WeightForm) -> SpectralSpec:
        """Rank and depth of a residual and a chain, or of a chain, with the usual rates.

        A residual that was frozen is found as one that is trained: they fold alike.

        Raises:
            FoldError: They are no such matrices, or all of one square size, which both have.
        """
        found = rank_and_depth(shapes, form)
        if found is not None:
            return SpectralSpec.of(form, rank=found[0], depth=found[1])
        return SpectralSpec.of(form, rank=shapes[0][1], depth=len(shapes), residual="none")


def _require_nothing_left(rest: Tensor, matrix: Tensor, spec: SpectralSpec) -> None:
    scale = float(matrix.abs().max()) or 1.0
    left, whole = (torch.linalg.vector_norm(part.double() / scale) for part in (rest, matrix))
    if float(left) > _LOST * float(whole):
        raise InputError(
            f"{spec.depth} factors of rank {spec.rank} without a residual would lose "
            f"{float(left / whole):.2g} of its norm, wanted a weight of that rank; ask for "
            f"spectral(residual=frozen), or for the rank {min(spec.stored)}"
        )


register(Spectral())
