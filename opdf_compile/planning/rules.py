"""Rules: which weights are asked to become what."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from opdf_compile.graph import Match
from opdf_compile.parametrizations import (
    Parametrization,
    Request,
    Spec,
    WeightForm,
    branch_forms,
    registered,
)


@dataclass(frozen=True)
class Rule:
    """A glob over weight names, and what is asked for the weights that it names."""

    glob: str
    request: Request

    @cached_property
    def by(self) -> Parametrization[Any]:
        """The parametrization."""
        return registered(self.request.name)

    @property
    def of_sites(self) -> bool:
        """Whether branches beside convolutions are asked for, not cores of weights."""
        return self.request.name in branch_forms()

    @property
    def cores(self) -> int | None:
        """The cores per weight that the rule itself asks for."""
        given = self.request.options.get("cores")
        return given if isinstance(given, int) else None

    @property
    def options(self) -> dict[str, Any]:
        """All other options."""
        return {key: value for key, value in self.request.options.items() if key != "cores"}

    def proposed(self, found: Match, cores: int) -> Spec:
        """The usual spec of a weight with so many cores."""
        spec: Spec = self.by.propose(WeightForm.matched(found), cores=cores, **self.options)
        return spec

    def candidates(self, found: Match) -> tuple[Spec, ...]:
        """The specs of a weight to choose from."""
        return tuple(self.by.candidates(WeightForm.matched(found), **self.options))
