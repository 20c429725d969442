"""Hyperball: a weight stays on the sphere of its start, and a step has a length that is given.

    W <- R N( W + eta R N(u) )        N(x) = x / |x| (Frobenius),  R = |W| at the start

u is the move that the wrapped optimizer made of W, with its own sign: arXiv 2606.16899. N(u) has
lost the size of u and the learning rate that went into it, so eta, the rate of the group, comes in
once; it is the angle of the step, nearly. A schedule moves it as it moves any rate, and an
optimizer that finds its own step size (its lr is 1) is refused: eta would be no step size.

Weight decay has no part in it, the norm being held: weights of this form are left out of it. R is
the one number that is kept. u is the difference of the weight after the step and a copy from before
it, which lives during the step. A weight of zeros has R = 0: it is left to the optimizer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from opdf_compile.parametrizations.base import TensorShapes
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm, checked_matrix
from opdf_compile.parametrizations.metric import (
    MetricParametrization,
    MetricStep,
    Scaling,
    norms_of,
    own_part,
)
from opdf_compile.parametrizations.registry import register
from opdf_compile.tensor import Cost

_LOG = logging.getLogger("opdf_compile")
# Of the norm; what a step leaves differs from R by the rounding of the weight's dtype.
_CLOSE = 1e-3


class Hyperball(MetricParametrization[MatrixSpec]):
    """The norm held, and the length of a step; what is kept is R."""

    name = "hyperball"
    summary = "W itself, its norm held, the step of length lr times it"
    adds = "nothing"
    source = "Hyperball, arXiv 2606.16899"
    spec_type = MatrixSpec
    reads_rate = True
    decays = False
    copies = True

    def decompose(
        self, weight: Tensor, spec: MatrixSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """R."""
        checked_matrix(weight, spec)
        radius = norms_of([weight.detach()]).nan_to_num(posinf=0.0)
        if not radius.any():
            shape = list(spec.shape)
            _LOG.warning(
                "a weight of shape %s has norm 0, or one beyond its dtype: hyperball leaves it to "
                "the optimizer",
                shape,
            )
        return (radius.to(self.core_dtype(spec)),)

    def shapes(self, spec: MatrixSpec) -> TensorShapes:
        """(1,)."""
        return ((1,),)

    def snapshot(self, weight: Tensor, spec: MatrixSpec, scaling: Scaling) -> Tensor:
        """All of it."""
        return weight.clone()

    def after(self, steps: Sequence[MetricStep[MatrixSpec]]) -> None:
        """Each move is put to its length, and its weight on its sphere."""
        weights = [own_part(step.weight) for step in steps]
        befores = [own_part(step.before) for step in steps if step.before is not None]
        radii, rate = torch.cat([step.kept[0] for step in steps]), steps[0].rate
        assert len(befores) == len(weights) and rate is not None

        def times(factors: Tensor) -> None:
            torch._foreach_mul_(weights, factors.view(-1, 1).unbind())

        def norms() -> Tensor:
            return norms_of([step.weight for step in steps])

        # The moves stand alone while they are put to their length: beside a move that is much
        # longer, what a weight was is lost in the rounding of half precision.
        torch._foreach_sub_(weights, befores)
        lengths = norms()
        # A weight that did not move keeps its values. No branch on a value, which would wait for a
        # device.
        held = (lengths > 0) & (radii > 0)
        one = torch.ones_like(radii)
        times(torch.where(held, rate * radii / lengths, one))
        torch._foreach_add_(weights, befores)
        times(torch.where(held, radii / norms(), one))

    def strayed(
        self, weights: Sequence[Tensor], kept: Sequence[tuple[Tensor, ...]]
    ) -> Tensor | None:
        """Those whose norm is another one; of a weight that is not held, never."""
        radii = torch.cat([radius for (radius,) in kept])
        allowed = max(_CLOSE, 4 * torch.finfo(weights[0].dtype).eps) * radii
        return (radii > 0) & ((norms_of(weights) - radii).abs() > allowed)

    def describe(self, spec: MatrixSpec) -> str:
        """What is done: ``norm held``."""
        return "norm held"

    def cost(self, spec: MatrixSpec) -> Cost:
        """Three norms, and five operations per entry."""
        entries = math.prod(spec.shape)
        return Cost(
            parameters=entries,
            added=0,
            forward_flops=11 * entries,
            largest_intermediate=entries,
            untrained=1,
        )

    def propose(self, form: WeightForm, *, cores: int = 0, **options: Any) -> MatrixSpec:
        """The only spec.

        Raises:
            PlanError: Cores are wanted.
        """
        self.require_usual(cores, "no cores", "or take the parametrization 'mpo' for chains")
        return MatrixSpec.of(form, **options)


register(Hyperball())
