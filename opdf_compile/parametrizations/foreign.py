"""Parametrizations that were written without the base class, as the base class has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opdf_compile.parametrizations.base import Parametrization
from opdf_compile.parametrizations.matrix_spec import WeightForm
from opdf_compile.parametrizations.request import Option

# Members that take a form, which such a class takes apart.
_FORMED = ("propose", "candidates", "infer")
_OWN: Any = None


class Foreign(Parametrization[Any]):
    """An object that has the members and is no child of `Parametrization`.

    Its own members are used as they are, and the defaults for those that have one and that it
    lacks. It is given no `WeightForm` but the shape, and `dtype`, `transposed`, `kernel` and
    `row_axes` as keywords; `row_axes` only where it is not 1, so that one that knows no stacks of
    matrices may leave it out. `infer` gets the first two keywords.
    """

    # Always the object's, or the error says that it lacks them.
    decompose = compose = shapes = cost = _OWN

    def __init__(self, own: Any) -> None:
        """Keep the object; nothing of it is called."""
        self.own = own

    def __getattribute__(self, name: str) -> Any:
        if name == "own" or name in _FORMED or name.startswith("__"):
            return super().__getattribute__(name)
        if name == "options":
            return _options(self.own)
        if name in Parametrization.__abstractmethods__ or hasattr(self.own, name):
            return getattr(self.own, name)
        return super().__getattribute__(name)

    def propose(self, form: WeightForm, *, cores: int, **options: Any) -> Any:
        """Its usual spec."""
        return self.own.propose(form.shape, cores=cores, **_keywords(form), **options)

    def candidates(self, form: WeightForm, **options: Any) -> tuple[Any, ...]:
        """Its specs to choose from."""
        return tuple(self.own.candidates(form.shape, **_keywords(form), **options))

    def infer(self, shapes: Sequence[Sequence[int]], form: WeightForm) -> Any:
        """Its spec that has tensors of these shapes."""
        return self.own.infer(shapes, form.shape, dtype=form.dtype, transposed=form.transposed)


def _keywords(form: WeightForm) -> dict[str, Any]:
    stack = {"row_axes": form.row_axes} if form.row_axes != 1 else {}
    return {"dtype": form.dtype, "transposed": form.transposed, "kernel": form.kernel, **stack}


def _options(own: Any) -> Mapping[str, Option]:
    """Its options; something else of that name is a member that means something else."""
    found = getattr(own, "options", None)
    if not isinstance(found, Mapping) or not all(isinstance(o, Option) for o in found.values()):
        return {}
    return found
