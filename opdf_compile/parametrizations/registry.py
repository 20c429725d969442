"""The parametrizations that plans can name."""

from __future__ import annotations

from typing import Any

from opdf_compile.errors import InternalError, PlanError
from opdf_compile.parametrizations.base import Parametrization
from opdf_compile.spelling import nearest

_REGISTERED: dict[str, Parametrization[Any]] = {}


def register(parametrization: Parametrization[Any]) -> None:
    """Make a parametrization known by its name.

    Raises:
        InternalError: Another one has the name; replacing it would change what old plans mean.
    """
    name = parametrization.name
    known = _REGISTERED.setdefault(name, parametrization)
    if known is not parametrization:
        raise InternalError(
            f"the parametrization name '{name}' is taken by {type(known).__name__}, so"
            f" {type(parametrization).__name__} needs another name"
        )


def registered(name: str) -> Parametrization[Any]:
    """The parametrization called `name`.

    Raises:
        PlanError: There is none.
    """
    if name not in _REGISTERED:
        known = registered_names()
        near = nearest(name, known)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise PlanError(
            f"parametrization '{name}' is not known; use one of: {', '.join(known)}{hint}"
        )
    return _REGISTERED[name]


def registered_names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_REGISTERED))
