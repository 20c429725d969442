"""A plan's entry: the decision for one weight, and all that follows from it.

decompose   W -> T_1, .., T_n
compose     T_1, .., T_n -> W          in the cores' own dtype, as a training step does it
fold        W = round(compose(T_1, .., T_n))     composed in float64, rounded once
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import FoldError, InputError
from opdf_compile.parametrizations import Parametrization, ScalingTerm, Spec, registered
from opdf_compile.tensor import Cost

# Of the files that hold entries.
SCHEMA = "opdf-plan/1"


@dataclass(frozen=True)
class PlanEntry:
    """The decision for one weight.

    Attributes:
        key: The weight's name in the student.
        parametrization: Name in the registry.
        spec: The parametrization's own choice (modes, dtype, shape).
        aliases: Other names of the same Parameter.
    """

    key: str
    parametrization: str
    spec: Spec
    aliases: tuple[str, ...] = ()

    @property
    def by(self) -> Parametrization[Any]:
        """The parametrization itself."""
        return registered(self.parametrization)

    @property
    def cost(self) -> Cost:
        """Exact cost of composing the weight once."""
        return self.by.cost(self.spec)

    @property
    def deployed(self) -> int:
        """Parameters of the folded weight."""
        return prod(self.spec.shape)

    @cached_property
    def core_names(self) -> tuple[str, ...]:
        """Names of the cores in a state dict."""
        return tuple(self.by.core_names(self.key, self.spec))

    @property
    def core_dtype(self) -> torch.dtype:
        """The dtype that the cores are stored in."""
        return self.by.core_dtype(self.spec)

    @property
    def rates(self) -> tuple[float, ...]:
        """Of each core the factor of its learning rate."""
        return tuple(self.by.rates(self.spec))

    @property
    def outside_clip_norm(self) -> frozenset[str]:
        """Names of the cores whose gradients a clip norm should not count."""
        return frozenset(self.core_names[k] for k in self.by.outside_clip_norm(self.spec))

    @property
    def metric(self) -> bool:
        """Whether it holds no cores: the optimizer steps the weight itself."""
        return self.by.metric

    @cached_property
    def untrained(self) -> frozenset[str]:
        """Names of the cores that no optimizer steps."""
        return frozenset(self.core_names[k] for k in self.by.untrained(self.spec))

    @cached_property
    def terms(self) -> tuple[ScalingTerm, ...] | None:
        """What scales the weight, see `Parametrization.terms`; None where nothing says so."""
        terms = self.by.terms(self.spec)
        return None if terms is None else tuple(terms)

    @property
    def modes(self) -> str:
        """The spec in short, for tables."""
        return self.by.describe(self.spec)

    def decompose(
        self, weight: Tensor, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """The cores of the weight.

        Args:
            weight: As the student holds it.
            device: Where to factorise; the weight's own if None.

        Raises:
            InputError: It holds NaN or infinity; with its name.
        """
        try:
            return tuple(self.by.decompose(weight.detach(), self.spec, device=device))
        except InputError as error:
            raise InputError(
                f"the weight {self.key!r} cannot be factorised: {error}; repair the weight, or "
                f"exclude it (exclude=[{self.key!r}])"
            ) from error

    def compose(self, cores: Iterable[Tensor]) -> Tensor:
        """The weight in the cores' own dtype; differentiable."""
        tensors = tuple(cores)
        own = self.spec.with_dtype(str(tensors[0].dtype).removeprefix("torch."))
        return self.by.compose(tensors, own)

    def fold(self, cores: Iterable[Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """The weight that ships.

        Args:
            cores: In any dtype.
            dtype: The student's own where it was cast since it was planned: rounding to the
                planned one first would be off by more.

        Raises:
            FoldError: The cores give NaN or infinity.
        """
        exact = self.compose(core.detach().double() for core in cores)
        return rounded_weight(self.key, exact, dtype or getattr(torch, self.spec.dtype))

    def to_json(self) -> dict[str, Any]:
        """The entry as plain values."""
        return {
            "key": self.key,
            "aliases": list(self.aliases),
            "parametrization": self.parametrization,
            "spec": self.by.spec_to_json(self.spec),
            "cost": vars(self.cost),
        }


def retract(weights: Iterable[tuple[PlanEntry, Sequence[Tensor]]]) -> None:
    """Bring the cores of weights, in place, to where a step must leave them.

    Args:
        weights: Each entry with its cores.
    """
    alike: dict[str, list[tuple[Sequence[Tensor], Spec]]] = {}
    for entry, cores in weights:
        alike.setdefault(entry.parametrization, []).append((cores, entry.spec))
    with torch.no_grad():
        for name, many in alike.items():
            registered(name).retract_all(many)


def rounded_weight(key: str, exact: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight that was composed in float64, rounded once.

    Raises:
        FoldError: It holds NaN or infinity, which no student should be shipped with.
    """
    weight = exact.to(dtype)
    # After rounding: a value may be finite in float64 and infinite in float16.
    if not torch.isfinite(weight).all():
        raise FoldError(
            f"the cores of {key!r} give NaN or infinity, wanted finite weights; training "
            "diverged: fold an earlier checkpoint, or lower the learning rate"
        )
    return weight
