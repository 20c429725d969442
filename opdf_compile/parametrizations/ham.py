"""HAM: after each step every entry is multiplied by a power that its gradient sets.

    w <- w exp( eta (-alpha sign(w) g - beta) )          the exponent kept within -5 .. 5

w after the step of the wrapped optimizer, g = dL/dw of that step, eta the learning rate of the
group: arXiv 2506.02630 (hyperbolic aware minimisation), whose alpha = 200 and beta = 1e-3 are the
usual ones here. An entry grows where its gradient points away from zero and shrinks where it points
to it, by a factor, as if it were a product of two: a small step for the small, a large one for the
large. With alpha = 0 it is plain decay by beta, so whoever compares must tune the rival's decay.

It keeps nothing and needs no copy of the weight. A zero stays where the optimizer puts it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from opdf_compile.errors import PlanError
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm
from opdf_compile.parametrizations.metric import MetricParametrization, MetricStep, own_part
from opdf_compile.parametrizations.registry import register
from opdf_compile.parametrizations.request import Option
from opdf_compile.tensor import Cost

USUAL_ALPHA, USUAL_BETA = 200.0, 1e-3
_MOST = 5.0


@dataclass(frozen=True)
class HamSpec(MatrixSpec):
    """How strongly gradient and decay act.

    Attributes:
        alpha: Of the gradient.
        beta: Of the decay.

    Raises:
        PlanError: One is negative or no number.
    """

    alpha: float = USUAL_ALPHA
    beta: float = USUAL_BETA

    def __post_init__(self) -> None:
        """Refuse what is no strength."""
        super().__post_init__()
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise PlanError(f"{name} is {value!r}, wanted a number from 0")


class Ham(MetricParametrization[HamSpec]):
    """Every entry times a power after the step."""

    name = "ham"
    summary = "W itself; each entry times a power after the step"
    adds = "nothing"
    source = "HAM, arXiv 2506.02630"
    spec_type = HamSpec
    reads_rate = True
    options = MappingProxyType(
        {
            "alpha": Option(float, USUAL_ALPHA, "strength of the gradient in the exponent"),
            "beta": Option(float, USUAL_BETA, "strength of the decay in the exponent"),
        }
    )

    def after(self, steps: Sequence[MetricStep[HamSpec]]) -> None:
        """Five passes over one temporary of the weight's size."""
        for step in steps:
            assert step.rate is not None
            weight = own_part(step.weight)
            wide = torch.float32 if weight.dtype.itemsize < 4 else weight.dtype
            power = torch.sign(weight).to(wide)
            toward = step.spec.alpha * (1.0 if step.ascends else -1.0)
            shrink = power.new_tensor(-step.rate * step.spec.beta)
            gradient = own_part(step.gradient).to(wide)
            torch.addcmul(shrink, power, gradient, value=step.rate * toward, out=power)
            weight.mul_(power.clamp_(-_MOST, _MOST).exp_())

    def describe(self, spec: HamSpec) -> str:
        """Its strengths: ``alpha 200, beta 0.001``."""
        return f"alpha {spec.alpha:g}, beta {spec.beta:g}"

    def cost(self, spec: HamSpec) -> Cost:
        """Seven operations per entry after the step, on one temporary."""
        entries = math.prod(spec.shape)
        return Cost(
            parameters=entries, added=0, forward_flops=7 * entries, largest_intermediate=entries
        )

    def propose(self, form: WeightForm, *, cores: int = 0, **options: Any) -> HamSpec:
        """The usual strengths, or those given.

        Raises:
            PlanError: Cores are wanted.
        """
        self.require_usual(cores, "no cores", "or take the parametrization 'mpo' for chains")
        return HamSpec.of(form, **options)


register(Ham())
