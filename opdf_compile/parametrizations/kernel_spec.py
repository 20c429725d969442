"""What parametrizations that take a convolution's kernel share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from opdf_compile.errors import PlanError
from opdf_compile.parametrizations.base import Parametrization
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm


@dataclass(frozen=True)
class KernelSpec(MatrixSpec):
    """A kernel of more than one element, and groups of outputs.

    Attributes:
        groups: g, a divisor of the weight's first axis; the convolution's, or 1.

    Raises:
        PlanError: The weight is no kernel of a convolution, or the groups do not divide it.
    """

    groups: int = 1

    _owner: ClassVar[str]

    def __post_init__(self) -> None:
        """Refuse what has no kernel."""
        super().__post_init__()
        if self.row_axes != 1:
            raise PlanError(f"row_axes is {self.row_axes}, wanted 1 for a convolution's kernel")
        if self.kernel == 1:
            raise PlanError(
                f"{self._owner} takes a convolution's kernel of more than one element, found a "
                f"weight of shape {list(self.shape)}; leave it plain, or take another "
                "parametrization"
            )
        if type(self.groups) is not int or self.groups < 1 or self.shape[0] % self.groups:
            raise PlanError(
                f"groups is {self.groups!r}, wanted a divisor of the first axis of a weight of "
                f"shape {list(self.shape)}"
            )

    @classmethod
    def grouped(cls, form: WeightForm, **choices: Any) -> Self:
        """With the convolution's groups; without, where the first axis has none of them."""
        divided = form.shape[0] % form.groups == 0
        return cls.of(form, groups=form.groups if divided else 1, **choices)

    @property
    def kernel(self) -> int:
        """M, the elements of the kernel."""
        return math.prod(self.shape[2:])


K = TypeVar("K", bound=KernelSpec)


class KernelParametrization(Parametrization[K]):
    """Of kernels of more than one element, with `usual_cores` tensors and no choice of them."""

    def why_not(self, form: WeightForm) -> str | None:
        """Only kernels of more than one element, stored as convolutions store them."""
        fits = form.row_axes == 1 and 1 < form.kernel == math.prod(form.shape[2:])
        if fits:
            return None
        return f"is no convolution kernel of more than one element, as {self.name} needs"

    def propose(self, form: WeightForm, *, cores: int | None = None, **options: Any) -> K:
        """With the convolution's groups; without, where the weight's first axis has none of them.

        Raises:
            PlanError: The weight is no kernel, or another number of cores is wanted.
        """
        if cores is not None:
            self.require_usual(cores, f"{self.usual_cores} tensors", "there is one form")
        return self.spec_type.grouped(form, **options)
