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
from typing import Any

import torch
from torch import Tensor

from opdf_compile.parametrizations.base import TensorShapes
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm, checked_matrix
from opdf_compile.parametrizations.metric import (
    MetricParametrization,
    MetricStep,
    Scaling,
    norm_of,
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
        radius = norm_of(weight.detach()).reshape(1).nan_to_num(posinf=0.0)
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

    def after(self, step: MetricStep[MatrixSpec]) -> None:
        """The move is put to its length, and the weight on its sphere."""
        assert step.before is not None and step.rate is not None
        (radius,) = step.kept
        weight, move = own_part(step.weight), own_part(step.before)
        # The move, in the copy's memory.
        torch.sub(weight, move, out=move)
        length = norm_of(step.before).reshape(1)
        # A weight that did not move keeps its bits. No branch on a value, which would wait for a
        # device.
        held = (length > 0) & (radius > 0)
        one = torch.ones_like(radius)
        more = torch.where(held, step.rate * radius / length, one) - 1
        weight.addcmul_(move, more.to(weight.dtype))
        scale = torch.where(held, radius / norm_of(step.weight), one)
        weight.mul_(scale)

    def strayed(self, weight: Tensor, kept: tuple[Tensor, ...]) -> Tensor | None:
        """Whether its norm is another one; of a weight that is not held, never."""
        (radius,) = kept
        allowed = max(_CLOSE, 4 * torch.finfo(weight.dtype).eps) * radius
        return (radius > 0) & ((norm_of(weight) - radius).abs() > allowed)

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
