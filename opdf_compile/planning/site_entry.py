"""A plan's entry of the second kind: the branches beside a convolution and its BatchNorm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import FoldError, PlanError
from opdf_compile.graph import NORM_TENSORS, Site
from opdf_compile.parametrizations import (
    Conv,
    Norm,
    SiteSpec,
    SiteTensors,
    branch_forms,
    branch_of,
    branch_tensor_names,
    folded_site,
)
from opdf_compile.tensor import Cost


@dataclass(frozen=True)
class SiteEntry:
    """The decision for one site.

    Attributes:
        key: Name of the convolution's weight in the student.
        norm: Names of the norm's weight, bias, running_mean and running_var.
        parametrization: Name of the branch form.
        spec: The branches.
        bias: Name of the convolution's bias, or None.
        outputs: Positions of the output on the example batch, batch included; 0 if unknown.
        modules: Whether each of the two is computed by the module that holds its tensors.
    """

    key: str
    norm: Mapping[str, str]
    parametrization: str
    spec: SiteSpec
    bias: str | None = None
    outputs: int = 0
    modules: bool = True

    def __post_init__(self) -> None:
        """Refuse names that are none.

        Raises:
            PlanError: The norm's names, the form or a branch is not known.
        """
        if sorted(self.norm) != sorted(NORM_TENSORS):
            raise PlanError(
                f"the norm of {self.key!r} has the tensors {', '.join(self.norm)}, wanted "
                f"{', '.join(NORM_TENSORS)}"
            )
        if self.parametrization not in branch_forms():
            raise PlanError(
                f"{self.parametrization!r} is no form of branches; use one of: "
                f"{', '.join(branch_forms())}"
            )
        for name in self.spec.branches:
            branch_of(name, self.spec)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names of the weight: a site has none."""
        return ()

    @property
    def branches_name(self) -> str:
        """Where the branches' tensors are in the inline form."""
        return f"{self.key}_branches"

    @property
    def deployed(self) -> int:
        """Parameters of the folded weight."""
        return prod(self.spec.shape)

    @property
    def added(self) -> int:
        """Parameters of the branches."""
        layers = [step for n in self.spec.branches for _n, step in branch_of(n, self.spec).steps]
        weights = sum(prod(step.shape) for step in layers if isinstance(step, Conv))
        return weights + sum(2 * step.features for step in layers if isinstance(step, Norm))

    @property
    def cost(self) -> Cost:
        """What the branches add to a step on the example batch; their norms are left out."""
        flops = 0
        for name in self.spec.branches:
            for step_name, step in branch_of(name, self.spec).steps:
                if isinstance(step, Conv):
                    flops += 2 * prod(step.shape) * self._positions(step_name)
        parameters = self.deployed + self.added
        return Cost(parameters, self.added, forward_flops=flops, backward_flops=2 * flops)

    @property
    def activation_bytes(self) -> int:
        """What the backward of the branches keeps beside the student's own activations."""
        kept = 0
        for name in self.spec.branches:
            # Each layer keeps its input; the first one's is the site's own.
            for step_name, step in branch_of(name, self.spec).steps[:-1]:
                kept += _width(step) * self._positions(step_name)
        return kept * int(getattr(torch, self.spec.dtype).itemsize)

    def _positions(self, step: str) -> int:
        """Positions that a step makes: those before the stride are more."""
        strided = step not in ("conv1", "norm1")
        return self.outputs * (1 if strided else prod(self.spec.stride))

    @property
    def modes(self) -> str:
        """The branches in short, for tables."""
        return "+".join(self.spec.branches)

    def fold(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The numbers of the convolution and its norm that do all of it in eval mode.

        Args:
            tensors: By name, the student's own and those below `branches_name`.

        Returns:
            The weight and the norm's tensors by the student's own names; in float64, rounded once.

        Raises:
            FoldError: A tensor is missing, or the result is not finite.
        """
        prefix = f"{self.branches_name}."
        wanted = [
            n for b in self.spec.branches for n in branch_tensor_names(branch_of(b, self.spec))
        ]
        own = [self.key, *self.norm.values(), *([self.bias] if self.bias else [])]
        missing = [name for name in (*own, *(prefix + n for n in wanted)) if name not in tensors]
        if missing:
            raise FoldError(
                f"the site {self.key!r} has no tensor {missing[0]!r} ({len(missing)} missing), "
                "wanted all of its branches; save the whole state dict"
            )
        gamma, beta, mean, var = (tensors[self.norm[name]] for name in NORM_TENSORS)
        bias = tensors[self.bias] if self.bias else None
        site = SiteTensors(tensors[self.key], gamma, beta, mean, var, bias)
        made = folded_site(
            self.key, self.spec, site, {name: tensors[prefix + name] for name in wanted}
        )
        values = (made.gamma, made.beta, made.mean, made.var)
        named = {self.norm[name]: v for name, v in zip(NORM_TENSORS, values, strict=True)}
        return {self.key: made.weight, **named}

    def to_json(self) -> dict[str, Any]:
        """The entry as plain values."""
        return {
            "key": self.key,
            "norm": dict(self.norm),
            "parametrization": self.parametrization,
            "spec": self.spec.to_json(),
            "bias": self.bias,
            "outputs": self.outputs,
            "modules": self.modules,
            "cost": {**vars(self.cost), "activation_bytes": self.activation_bytes},
        }

    def require_site(self, found: Site | str | None) -> None:
        """Check that the entry fits the site of the model at hand.

        Raises:
            PlanError: The model has none there, or another one.
        """
        remedy = "make a plan for this model (opdf-compile plan MODEL -o plan.json)"
        if not isinstance(found, Site):
            reason = "is no weight of it" if found is None else found
            raise PlanError(f"the plan gives {self.key!r} branches, but it {reason}; {remedy}")
        for name, planned in self._site().items():
            present = getattr(found, name)
            if planned != present:
                raise PlanError(
                    f"the plan gives {self.key!r} the site with {name} {planned}, the model has "
                    f"{present}; {remedy}"
                )

    def _site(self) -> dict[str, Any]:
        """What a site must have in common with this one, by the names of its attributes."""
        spec = self.spec
        names = ("shape", "dtype", "stride", "padding", "dilation", "groups", "eps", "momentum")
        planned = {name: getattr(spec, name) for name in names}
        return {**planned, "norm": dict(self.norm), "bias": self.bias}


def _width(step: Any) -> int:
    if isinstance(step, Conv):
        return step.shape[0]
    return int(step.features if isinstance(step, Norm) else step.channels)
