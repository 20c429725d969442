"""Learning rates of single cores: what a parametrization asks for, by core."""

from __future__ import annotations

import math
from collections.abc import Iterable

from opdf_compile.errors import PlanError
from opdf_compile.training.hoisted.unit import Unit


def core_rates(units: Iterable[Unit]) -> dict[int, float]:
    """The factor of the learning rate of every core that has one, by the core's id.

    A core that several weights share has the factor of the first.

    Raises:
        PlanError: A parametrization gives too few factors, or one that is no positive number.
    """
    found: dict[int, float] = {}
    for unit in units:
        of_name: dict[str, float] = {}
        for bound in unit.weights:
            entry, rates = bound.entry, bound.entry.rates
            good = all(0 < rate < math.inf for rate in rates)
            if not good or len(rates) != len(entry.core_names):
                raise PlanError(
                    f"the parametrization {entry.parametrization!r} gives the cores of "
                    f"{entry.key!r} the rates {rates}, wanted {len(entry.core_names)} positive "
                    "numbers; mend its rates()"
                )
            for name, rate in zip(entry.core_names, rates, strict=True):
                of_name.setdefault(name, rate)
        for name, core in zip(unit.members[0], unit.storage, strict=True):
            if of_name[name] != 1.0:
                found[id(core)] = of_name[name]
    return found
