"""A change of low rank beside the weight, deep and near zero at the start.

    W = B + F_1 F_2 .. F_L          F_1 (rows, r),  F_2 .. F_(L-1) (r, r),  F_L (r, cols)

Adapting a network to few labels moves its weights in few directions, which the first gradient
shows: factors that start small along its leading singular vectors find them, and small factors in
depth keep the change of low rank (Deep LoRA, arXiv 2406.04112).

    F_1 = U_r,   F_l = e I,   F_L = V_r^T,   B = W - F_1 .. F_L             e = 1e-3

with orthonormal U_r, V_r. The last of the small factors is multiplied by s, too, the root mean
square of W's singular values, so that the start is as small beside any weight: of a weight that is
zero it is zero, and has a gradient. With two factors F_L = e s V_r^T.

No gradient is there when a plan is made, and a decomposition draws nothing at random. So U_r, V_r
are the leading singular vectors of W; `seeded` takes those of a gradient instead, which
`Overparam.seed` and `WeightProgram.seed` give it between the first backward and the first step.

    base = "trained"    B is trained too: no direction is closed
    base = "frozen"     B stays, and W moves in r directions on either side
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import InputError, PlanError
from opdf_compile.parametrizations.base import TensorShapes
from opdf_compile.parametrizations.matrix_spec import WeightForm, checked_matrix
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
from opdf_compile.tensor import singular_frames

USUAL_RANK = 8
# e, the paper's.
USUAL_SIZE = 1e-3
BASES = ("trained", "frozen")


@dataclass(frozen=True)
class DeltaSpec(ChainSpec):
    """A base and a chain.

    Attributes:
        base: "trained" or "frozen".
        size: e, above 0 and at most 1.

    Raises:
        PlanError: The base is neither, or the size is no such number.
    """

    base: str = "trained"
    size: float = USUAL_SIZE

    def __post_init__(self) -> None:
        """Refuse what is no base and no size."""
        super().__post_init__()
        if self.base not in BASES:
            raise PlanError(f"base is {self.base!r}, wanted one of {', '.join(BASES)}")
        if type(self.size) not in (int, float) or not 0 < self.size <= 1:
            raise PlanError(f"size is {self.size!r}, wanted a number above 0 and at most 1")

    @property
    def still(self) -> bool:
        """Whether the base is kept as it is."""
        return self.base == "frozen"


class Delta(ResidualChain[DeltaSpec]):
    """W = B + F_1 .. F_L, 1 + L matrices."""

    name = "delta"
    summary = "B + F_1 F_2 .. F_L, inner size r, from near zero"
    adds = "r (rows + cols) + (L - 2) r^2"
    source = "Deep LoRA, arXiv 2406.04112"
    spec_type = DeltaSpec
    usual_cores = 1 + USUAL_DEPTH
    seeds = True
    options = MappingProxyType(
        {
            "cores": Option(int, usual_cores, "the base and the factors, 3 to 64"),
            "rank": Option(int, USUAL_RANK, "inner size, at most the full rank"),
            "base": Option(BASES, "trained", "whether the weight is trained beside its change"),
            "size": Option(float, USUAL_SIZE, "of the small factors at the start, at most 1"),
        }
    )

    def decompose(
        self, weight: Tensor, spec: DeltaSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """The weight less a small chain along its own leading singular vectors, and that chain."""
        return self.seeded(weight, weight, spec, device=device)

    def seeded(
        self,
        weight: Tensor,
        gradient: Tensor,
        spec: DeltaSpec,
        *,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, ...]:
        """Likewise along those of a gradient."""
        checked_matrix(weight, spec)
        try:
            checked_matrix(gradient, spec)
        except InputError as error:
            raise InputError(f"of its gradient: {error}") from error
        with torch.no_grad():
            matrix, along = (
                tensor.detach().to(device or weight.device, torch.float64).reshape(spec.stored)
                for tensor in (weight, gradient)
            )
            left, right = singular_frames(along, spec.rank)
            small = spec.size * torch.eye(spec.rank, dtype=left.dtype, device=left.device)
            chain = [left, *[small] * (spec.depth - 2), right]
            if spec.depth == 2:
                chain[-1] = chain[-1] * (spec.size * _mean_singular_value(matrix))
            else:
                chain[-2] = chain[-2] * _mean_singular_value(matrix)
            made = completed(matrix, chain, spec, self.core_dtype(spec))
            return tuple(tensor.to(weight.device) for tensor in made)

    def describe(self, spec: DeltaSpec) -> str:
        """What is beside the base: ``base + rank 8, depth 3``."""
        return f"{'frozen ' * spec.still}base + rank {spec.rank}, depth {spec.depth}"

    def propose(
        self, form: WeightForm, *, cores: int = 1 + USUAL_DEPTH, **options: Any
    ) -> DeltaSpec:
        """Rank 8 or the one asked for, of a smaller matrix the full one; the base is a core.

        Raises:
            PlanError: The number of cores is not 3 to 64.
        """
        depth, rank = require_depth(self.name, "a base", cores), rank_of(form, options, USUAL_RANK)
        return DeltaSpec.of(form, **{**options, "depth": depth, "rank": rank})

    def candidates(self, form: WeightForm, **options: Any) -> tuple[DeltaSpec, ...]:
        """The usual depth at ranks from 1 to the full one; else as given."""
        if "rank" in options:
            return super().candidates(form, **options)
        ranks = usual_ranks(form, min(USUAL_RANK, *form.stored))
        return tuple(DeltaSpec.of(form, rank=rank, **options) for rank in ranks)

    def spec_of(self, shapes: TensorShapes, form: WeightForm) -> DeltaSpec:
        """Rank and depth; a base that was frozen is found as one that is trained: they fold alike.

        Raises:
            PlanError: They are no base and a chain of this matrix.
            FoldError: They may be something else.
        """
        found = rank_and_depth(shapes, form)
        if found is None:
            size = " x ".join(map(str, form.stored))
            raise PlanError(f"the first is wanted to be {size}, and the second to have its rows")
        return DeltaSpec.of(form, rank=found[0], depth=found[1])


def _mean_singular_value(matrix: Tensor) -> float:
    """The root of their mean square, |W| / sqrt(min(rows, cols)); 0 of zeros."""
    largest = float(matrix.abs().max())
    norm = float(torch.linalg.vector_norm(matrix / (largest or 1.0)))
    return largest * norm / math.sqrt(min(matrix.shape))


register(Delta())
