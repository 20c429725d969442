"""The parametrizations that plans can name."""

from __future__ import annotations

from typing import Any

from opdf_compile.errors import InternalError, PlanError
from opdf_compile.parametrizations.base import Parametrization
from opdf_compile.parametrizations.branches.forms import COMMON_OPTIONS, branch_forms
from opdf_compile.parametrizations.foreign import Foreign
from opdf_compile.parametrizations.request import Request
from opdf_compile.spelling import nearest

_REGISTERED: dict[str, Parametrization[Any]] = {}


def register(parametrization: Any) -> None:
    """Make a parametrization known by its name.

    Args:
        parametrization: A child of `opdf_compile.parametrizations.Parametrization`, which says what
            it needs; or any object with the same members, see `foreign.Foreign`.

    Raises:
        InternalError: Another one has the name; replacing it would change what old plans mean.
    """
    known = _REGISTERED.get(parametrization.name)
    if known is None:
        own = isinstance(parametrization, Parametrization)
        _REGISTERED[parametrization.name] = parametrization if own else Foreign(parametrization)
        return
    holder = known.own if isinstance(known, Foreign) else known
    if holder is not parametrization:
        raise InternalError(
            f"the parametrization name '{parametrization.name}' is taken by "
            f"{type(holder).__name__}, so {type(parametrization).__name__} needs another name"
        )


def registered(name: str) -> Parametrization[Any]:
    """The parametrization called `name`.

    Raises:
        PlanError: There is none.
    """
    if name not in _REGISTERED:
        known = (*registered_names(), *branch_forms())
        near = nearest(name, known)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise PlanError(
            f"parametrization '{name}' is not known; use one of: {', '.join(known)}{hint}"
        )
    return _REGISTERED[name]


def requested(text: str) -> Request:
    """What a text such as ``mpo`` or ``mpo(cores=5)`` asks for, with options that there are.

    Raises:
        PlanError: It cannot be read, or its name, an option or a value is not known.
    """
    request = Request.parse(text)
    form = branch_forms().get(request.name)
    known = registered(request.name).options if form is None else {**form.options, **COMMON_OPTIONS}
    return request.checked(known)


def registered_names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_REGISTERED))
