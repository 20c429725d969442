"""Powerpropagation: every weight as a power of a parameter of its own (arXiv 2110.00296).

    w = t |t|^(a-1)          start: t = sign(w) |w|^(1/a)          dL/dt = dL/dw a |t|^(a-1)

Large weights move faster than small ones, so that training leaves many weights near zero: a sparse
student. It adds no parameters. Exact both ways up to rounding: t is rounded by u = 2^-24 in
float32, which the power makes a u of w, and the power itself rounds a few times; at the largest
exponent allowed, 8, that is below 8e-7 of every single weight.

A weight that is exactly zero has t = 0 and dL/dt = 0 and stays zero for ever. That is the method
(it keeps a pruned student pruned), and the reason not to use it on layers that start at zero.
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
from opdf_compile.tensor import Cost

USUAL_EXPONENT = 2.0
LARGEST_EXPONENT = 8.0


@dataclass(frozen=True)
class PowerSpec(MatrixSpec):
    """A weight whose entries are powers.

    Attributes:
        exponent: a, above 1 and at most 8.

    Raises:
        PlanError: The exponent is no such number.
    """

    exponent: float = USUAL_EXPONENT

    def __post_init__(self) -> None:
        """Refuse an exponent that could not be composed within rounding."""
        super().__post_init__()
        number = type(self.exponent) in (int, float)
        if not number or not 1 < self.exponent <= LARGEST_EXPONENT:
            raise PlanError(
                f"the exponent is {self.exponent!r}, wanted a number above 1 and at most "
                f"{LARGEST_EXPONENT:g}; the paper's are 2 to 4"
            )


class Powerprop(Parametrization[PowerSpec]):
    """w = t |t|^(a-1), one tensor."""

    name = "powerprop"
    summary = "t abs(t)^(a-1), entry by entry"
    adds = "nothing"
    source = "Powerpropagation, arXiv 2110.00296"
    spec_type = PowerSpec
    usual_cores = 1
    options = MappingProxyType(
        {"exponent": Option(float, USUAL_EXPONENT, "the power, above 1 and at most 8")}
    )

    def decompose(
        self, weight: Tensor, spec: PowerSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """sign(w) |w|^(1/a), computed in float64 and rounded once."""
        matrix_spec.checked_matrix(weight, spec)
        with torch.no_grad():
            wide = weight.detach().to(device=device or weight.device, dtype=torch.float64)
            root = (wide.sign() * wide.abs().pow(1 / spec.exponent)).to(self.core_dtype(spec))
            # The root of the largest numbers, rounded up, would have an infinite power.
            over = self.compose((root,), spec).isinf()
            root = torch.where(over, root.nextafter(torch.zeros_like(root)), root)
            return (root.to(weight.device).contiguous(),)

    def compose(self, tensors: Sequence[Tensor], spec: PowerSpec) -> Tensor:
        """The weight; at zero its derivative is 0 for every exponent, never 0 times infinity."""
        (root,) = tensors
        size = root.abs()
        nothing = size == 0
        # |t|^(a-1) has an infinite derivative at 0 where a < 2, so the power never sees a zero.
        powers = torch.where(nothing, 1.0, size).pow(spec.exponent - 1)
        weight = root * torch.where(nothing, 0.0, powers)
        return weight.reshape(spec.shape).to(getattr(torch, spec.dtype))

    def shapes(self, spec: PowerSpec) -> TensorShapes:
        """The weight's own shape."""
        return (spec.shape,)

    def terms(self, spec: PowerSpec) -> tuple[ScalingTerm, ...]:
        """Scaling t by f^(1/a) scales w by f."""
        return ({0: 1 / spec.exponent},)

    def describe(self, spec: PowerSpec) -> str:
        """The exponent: ``t^2``."""
        return f"t^{spec.exponent:g}"

    def cost(self, spec: PowerSpec) -> Cost:
        """A power and a product per entry forward, and three products per entry backward."""
        entries = math.prod(spec.shape)
        return Cost(
            parameters=entries,
            added=0,
            forward_flops=2 * entries,
            backward_flops=3 * entries,
            largest_intermediate=entries,
        )

    def propose(self, form: WeightForm, *, cores: int = 1, **options: Any) -> PowerSpec:
        """The exponent 2, or the one given.

        Raises:
            PlanError: More than one tensor is wanted.
        """
        self.require_usual(
            cores, "one tensor", "and ask for another exponent by powerprop(exponent=3)"
        )
        return PowerSpec.of(form, **options)

    def spec_of(self, shapes: TensorShapes, form: WeightForm) -> PowerSpec:
        """Nothing: a shape does not tell the exponent, and a wrong one would give wrong weights.

        Raises:
            FoldError: Always.
        """
        raise FoldError(
            f"cores of shapes {[list(shape) for shape in shapes]} do not tell the exponent of "
            "powerprop; fold the file that opdf-compile expand wrote, which has the plan"
        )


register(Powerprop())
