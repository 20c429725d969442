"""A gain for every row and every column of a weight, trained beside it.

    W = diag(r) V diag(c)          r (rows, 1),  c (1, cols),  V (rows, cols)
    start: r = 1, c = 1, V = W     exact, bit for bit

Noise and weight decay hold the norms of a matrix's rows and columns near an equilibrium that the
learning rate and the decay choose; gains, which sum their gradient over a whole row or column, let
the data choose it (learnable multipliers, arXiv 2601.04890; of the scale vectors of norms,
arXiv 2605.26895 says that they speed up the linear maps behind them by amplifying themselves).
Written as a step of W, what they do under SGD is another metric, at the cost of O(rows + cols):

    dW = -lr [ r^2 G c^2 + W rowsum(W G) / r^2 + W colsum(W G) / c^2 ] + O(lr^2),    G = dL/dW

r -> a r, V -> V / a leaves W as it is, and so does r -> a r, c -> c / a. A small decay keeps the
gains from wandering off along these; a full one would pull the learned scale back.

They stand outside a clip norm: the gradient of a gain is a sum over its whole row or column, and
would fill the norm. The matrix is the weight as it is stored, as `MatrixSpec` reads it: the columns
of a convolution are (in channel of a group, tap) pairs, the rows of a stack those of each matrix,
and its columns are one set for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import PlanError
from opdf_compile.parametrizations import matrix_spec
from opdf_compile.parametrizations.base import ScalingTerm, TensorShapes
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm
from opdf_compile.parametrizations.registry import register
from opdf_compile.parametrizations.request import Option
from opdf_compile.parametrizations.scaled import Scaled
from opdf_compile.tensor import Cost

# Of the decay of W, what r and c have each; a plan may have another.
USUAL_DECAY_SHARE = 0.02


@dataclass(frozen=True)
class GainsSpec(MatrixSpec):
    """A matrix and the gains of its rows and columns.

    Attributes:
        decay_share: What r and c each carry of the decay of W; V carries the rest.

    Raises:
        PlanError: The share is none.
    """

    decay_share: float = USUAL_DECAY_SHARE

    def __post_init__(self) -> None:
        """Refuse a share that leaves V none."""
        super().__post_init__()
        share = self.decay_share
        if type(share) not in (int, float) or not 0 <= share < 0.5:
            raise PlanError(
                f"decay_share is {share!r}, wanted a number from 0 to below 0.5: r and c have one "
                "share each, V the rest"
            )


class Gains(Scaled[GainsSpec]):
    """W = diag(r) V diag(c); the tensors are r, c and V, in this order.

    No other parametrization has tensors of these shapes in this order, so that a file without a
    plan can be folded: with V first they would be those of `spectral` at rank 1.
    """

    name = "gains"
    summary = "r_i V_ij c_j, a gain per row and column"
    adds = "rows + cols"
    source = "learnable multipliers, arXiv 2601.04890"
    spec_type = GainsSpec
    options = MappingProxyType(
        {
            "decay_share": Option(
                float, USUAL_DECAY_SHARE, "of the decay of W, what r and c have each; below 0.5"
            )
        }
    )

    def decompose(
        self, weight: Tensor, spec: GainsSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """Ones, ones and a copy of the weight; nothing is computed."""
        matrix_spec.checked_matrix(weight, spec)
        matrix = weight.detach().reshape(spec.stored).to(self.core_dtype(spec))
        # A copy of its own, contiguous whatever the weight's layout was.
        matrix = matrix.clone(memory_format=torch.contiguous_format)
        row_gains, column_gains, _matrix = self.shapes(spec)
        return matrix.new_ones(row_gains), matrix.new_ones(column_gains), matrix

    def shapes(self, spec: GainsSpec) -> TensorShapes:
        """(rows, 1), (1, cols) and (rows, cols), of the matrix as it is stored."""
        rows, cols = spec.stored
        return (rows, 1), (1, cols), (rows, cols)

    def terms(self, spec: GainsSpec) -> tuple[ScalingTerm, ...]:
        """One product: a small share on each gain, the rest on V, which takes the sign."""
        share = float(spec.decay_share)
        return ({2: 1 - 2 * share, 0: share, 1: share},)

    def describe(self, spec: GainsSpec) -> str:
        """The numbers of gains: ``48 x 30 gains``."""
        rows, cols = spec.stored
        return f"{rows} x {cols} gains"

    def cost(self, spec: GainsSpec) -> Cost:
        """Two products per entry forward; backward four, and two sums for the gains."""
        entries, added = math.prod(spec.shape), sum(spec.stored)
        return Cost(
            parameters=entries + added,
            added=added,
            forward_flops=2 * entries,
            backward_flops=6 * entries,
            largest_intermediate=entries,
        )

    def propose(self, form: WeightForm, *, cores: int = 3, **options: Any) -> GainsSpec:
        """The usual share of decay, or the one given.

        Raises:
            PlanError: Another number of cores is wanted.
        """
        self.require_usual(cores, "3 tensors", "or take the parametrization 'mpo' for chains")
        return GainsSpec.of(form, **options)


register(Gains())
