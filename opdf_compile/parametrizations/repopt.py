"""RepOpt: branches with constant scales, as a multiplier of the step of one kernel.

    W = s W_k + pad(t W_1) + diag(d)      a k x k kernel, a 1 x 1 kernel at its centre, and an
                                          identity with a trained factor per channel at that centre

With constant s and t, steps of SGD on the branches are those of SGD on W whose gradient is
multiplied entry by entry, whatever momentum it has (arXiv 2205.15242):

    s^2,  at the centre s^2 + t^2,  on the identity's diagonal of the centre 1 more

An optimizer whose step does not depend on the size of a gradient (AdamW) moves each branch by the
same u, and W by

    (s,  at the centre s + t,  on that diagonal 1 more)  times  u

so there the move is multiplied. Which of the two an optimizer is is found by trying it; any other
is refused. The weight is the student's, the start is exact, and nothing is kept; a copy of the
gradient lives during the step, or one of the weight, of its centre only where s is 1. Decay of the
weight is not multiplied.

The scales are constants of the plan; the authors find theirs by a search on another data set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import InputError, PlanError
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm
from opdf_compile.parametrizations.metric import (
    MetricParametrization,
    MetricStep,
    Scaling,
    own_part,
)
from opdf_compile.parametrizations.registry import register
from opdf_compile.parametrizations.request import Option
from opdf_compile.tensor import Cost

_NO_KERNEL = "is no convolution kernel of odd sizes and more than one element, as repopt needs"


@dataclass(frozen=True)
class RepOptSpec(MatrixSpec):
    """The constant scales of the branches.

    Attributes:
        kernel_scale: s.
        point_scale: t; 0 for no such branch.
        identity: Whether there is an identity; the layer must give as many channels as it takes,
            and its stride be 1, which a weight does not tell.
        groups: Of the convolution.

    Raises:
        PlanError: A scale is none, or the weight has no centre or no diagonal.
    """

    kernel_scale: float = 1.0
    point_scale: float = 1.0
    identity: bool = False
    groups: int = 1

    def __post_init__(self) -> None:
        """Refuse what is no branch."""
        super().__post_init__()
        for name, least in (("kernel_scale", "above 0"), ("point_scale", "from 0")):
            value = getattr(self, name)
            number = type(value) in (int, float) and 0 <= value < math.inf
            if not number or (value == 0 and name == "kernel_scale"):
                raise PlanError(f"{name} is {value!r}, wanted a number {least}")
        if not _has_centre(self.shape) or self.row_axes != 1:
            raise PlanError(f"a weight of shape {list(self.shape)} {_NO_KERNEL}; leave it plain")
        if type(self.identity) is not bool or type(self.groups) is not int or self.groups < 1:
            raise PlanError(
                f"identity is {self.identity!r} and groups is {self.groups!r}, wanted true or "
                "false, and a whole number from 1"
            )
        if self.identity and self.shape[0] != self.groups * self.shape[1]:
            raise PlanError(
                f"identity is true for a weight of shape {list(self.shape)} in {self.groups} "
                "groups, wanted as many channels out as in; leave identity out"
            )


class RepOpt(MetricParametrization[RepOptSpec]):
    """A gradient, or a move, times constants."""

    name = "repopt"
    summary = "W itself; a gradient times constants, kernels only"
    adds = "nothing"
    source = "RepOptimizer, arXiv 2205.15242"
    spec_type = RepOptSpec
    asks_scaling = True
    copies = True
    options = MappingProxyType(
        {
            "kernel_scale": Option(float, 1.0, "constant scale of the k x k branch"),
            "point_scale": Option(float, 1.0, "constant scale of the 1 x 1 branch; 0 for none"),
            "identity": Option(
                bool, False, "an identity branch, where channels allow it; the stride must be 1"
            ),
        }
    )

    def multiplied(self, gradient: Tensor, spec: RepOptSpec, scaling: Scaling) -> Tensor | None:
        """The gradient times squares of scales, under an optimizer in proportion to it."""
        if scaling != "linear":
            return None
        product = gradient.detach() * spec.kernel_scale**2
        at_centre = _centre(own_part(gradient.detach()), spec)
        _add_branches(own_part(product), at_centre, spec, spec.point_scale**2)
        return product

    def snapshot(self, weight: Tensor, spec: RepOptSpec, scaling: Scaling) -> Tensor | None:
        """Where the move is multiplied: the centre, or all of it if s is not 1."""
        if scaling != "free":
            return None
        part = own_part(weight)
        return (part if spec.kernel_scale != 1 else _centre(part, spec)).clone()

    def after(self, steps: Sequence[MetricStep[RepOptSpec]]) -> None:
        """The move times scales, under an optimizer that does not see the size of a gradient."""
        for step in steps:
            spec, before, weight = step.spec, step.before, own_part(step.weight)
            if before is None:
                continue
            if spec.kernel_scale == 1:
                at_centre = _centre(weight, spec) - before
            else:
                move = weight - before
                at_centre = _centre(move, spec).clone()
                weight.add_(move, alpha=spec.kernel_scale - 1)
            _add_branches(weight, at_centre, spec, spec.point_scale)

    def describe(self, spec: RepOptSpec) -> str:
        """The scales: ``kernel 1, point 1, identity``."""
        scales = f"kernel {spec.kernel_scale:g}, point {spec.point_scale:g}"
        return f"{scales}, identity" if spec.identity else scales

    def cost(self, spec: RepOptSpec) -> Cost:
        """At most three operations per entry."""
        entries = math.prod(spec.shape)
        return Cost(
            parameters=entries, added=0, forward_flops=3 * entries, largest_intermediate=entries
        )

    def why_not(self, form: WeightForm) -> str | None:
        """Only kernels with a centre: elsewhere constant scales are another learning rate."""
        fits = form.row_axes == 1 and form.kernel == math.prod(form.shape[2:])
        return None if fits and _has_centre(form.shape) else _NO_KERNEL

    def propose(self, form: WeightForm, *, cores: int = 0, **options: Any) -> RepOptSpec:
        """Both scales 1, or those given; an identity only where the channels allow it.

        Raises:
            PlanError: Cores are wanted, or the weight has no centre.
        """
        self.require_usual(cores, "no cores", "or take the parametrization 'mpo' for chains")
        square = form.shape[0] == form.groups * form.shape[1]
        identity = options.pop("identity", False) and square
        return RepOptSpec.of(form, **options, identity=identity, groups=form.groups)


def _has_centre(shape: tuple[int, ...]) -> bool:
    kernel = shape[2:]
    return math.prod(kernel) > 1 and all(size % 2 for size in kernel)


def _centre(values: Tensor, spec: RepOptSpec) -> Tensor:
    """The entries at the kernel's centre, (rows, channels of a group): a view."""
    for size in reversed(spec.shape[2:]):
        values = values.select(-1, size // 2)
    return values


def _add_branches(values: Tensor, at_centre: Tensor, spec: RepOptSpec, point: float) -> None:
    """Add what the branches that lie at the centre have of a gradient or of a move."""
    centre = _centre(values, spec)
    centre.add_(at_centre, alpha=point)
    if not spec.identity:
        return
    rows, channels = spec.shape[:2]
    if len(values) != rows:
        raise InputError(
            f"a weight of {rows} rows is sharded, {len(values)} are here, and repopt with an "
            "identity needs all of them; plan it without identity"
        )
    row = torch.arange(rows, device=values.device)
    centre[row, row % channels] += at_centre[row, row % channels]


register(RepOpt())
