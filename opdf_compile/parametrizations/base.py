"""What a parametrization is: two pure functions between a weight and its tensors, and a cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from opdf_compile.tensor import Cost


class Spec(Protocol):
    """The frozen, serialisable choice of one weight's tensors."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        ...

    @property
    def dtype(self) -> str:
        """Name of the weight's dtype, as in "float32"."""
        ...

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (in features, out features)."""
        ...

    def with_dtype(self, dtype: str) -> Self:
        """The same choice for a weight of another dtype."""
        ...


S = TypeVar("S", bound=Spec)

# One summand of a weight: place of a tensor -> the power of a factor that the tensor takes so that
# the summand takes the factor itself. {0: 1/2, 1: 1/2} for a product of two, {0: 1/a} for t^a.
Term = Mapping[int, float]


class Parametrization(Protocol[S]):
    """A pair of pure functions, and what a planner needs to choose between their specs.

    What a parametrization may have beside the members below:

    multilinear = True          It is linear in each of its tensors, so that decay of the weight can
                                be carried by them (see `training.optimizer.decay`).
    terms(spec)                 The same where the weight is a sum of products or a power: every
                                summand as a `Term`. The weight is odd in the first tensor of each.
    rates(spec)                 Of each tensor the factor of its learning rate; `Overparam` gives
                                them param groups of their own. In a loop over the inline form it
                                is the user who does.
    usual_cores = 2             Number of tensors where nobody asks for one; otherwise 3.
    describe(spec)              The spec in short, for tables.
    """

    @property
    def name(self) -> str:
        """The name by which plans refer to it."""
        ...

    @property
    def spec_type(self) -> type[S]:
        """The class of its specs."""
        ...

    def decompose(
        self, weight: Tensor, spec: S, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """The tensors of a weight, without loss and without randomness.

        Args:
            weight: Tensor of shape `spec.shape`.
            spec: The choice made for it.
            device: Where to factorise; the tensors come back on the weight's device.

        Raises:
            InputError: The weight does not fit the spec, or holds NaN or infinity.
        """
        ...

    def compose(self, tensors: Sequence[Tensor], spec: S) -> Tensor:
        """The weight of its tensors: contiguous, of `spec.shape`, cast once to `spec.dtype`.

        It computes in the tensors' own dtype. make_fx, torch.export, torch.compile and autograd
        can trace it. What it needs beside the tensors it makes by ops on their device
        (``torch.arange(.., device=tensors[0].device)``); it reads no tensor of its own.
        """
        ...

    def core_names(self, key: str, spec: S) -> tuple[str, ...]:
        """State dict names of the tensors of the weight `key`."""
        ...

    def shapes(self, spec: S) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors."""
        ...

    def core_dtype(self, spec: S) -> torch.dtype:
        """Dtype of the tensors."""
        ...

    def cost(self, spec: S) -> Cost:
        """Exact cost of composing the weight once."""
        ...

    def propose(
        self,
        weight_shape: Sequence[int],
        *,
        cores: int,
        dtype: str = "float32",
        transposed: bool = False,
        kernel: int = 1,
        row_axes: int = 1,
    ) -> S:
        """The usual spec with this many tensors.

        Args:
            weight_shape: Shape of the weight.
            cores: Number of tensors.
            dtype: Name of the weight's dtype.
            transposed: Whether the weight is stored as (in features, out features).
            kernel: Product of the kernel sizes of a convolution.
            row_axes: How many leading axes are rows; given only where it is not 1, so a
                parametrization that knows no stacks of matrices may leave it out.

        Raises:
            PlanError: The weight cannot be parametrized so.
        """
        ...

    def candidates(
        self,
        weight_shape: Sequence[int],
        *,
        dtype: str = "float32",
        transposed: bool = False,
        kernel: int = 1,
        row_axes: int = 1,
    ) -> tuple[S, ...]:
        """Specs to choose from, strictly increasing in added parameters."""
        ...

    def spec_to_json(self, spec: S) -> dict[str, object]:
        """The spec as JSON values."""
        ...

    def spec_from_json(self, data: Mapping[str, object]) -> S:
        """The spec of JSON values.

        Raises:
            PlanError: The values are no spec, or contradict each other.
        """
        ...

    def infer(
        self,
        shapes: Sequence[Sequence[int]],
        weight_shape: Sequence[int],
        *,
        dtype: str = "float32",
        transposed: bool = False,
    ) -> S:
        """The spec that has tensors of these shapes, for folding without a plan.

        Raises:
            FoldError: No spec of the weight has them.
        """
        ...
