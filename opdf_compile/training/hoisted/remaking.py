"""Cores of a program that are made anew: of weights that changed, or along their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from torch import Tensor

from opdf_compile.errors import InputError
from opdf_compile.planning import PlanEntry
from opdf_compile.training.hoisted.binding import Bound, whole
from opdf_compile.training.hoisted.ranks import ProgramRanks
from opdf_compile.training.hoisted.unit import Unit

_Making = tuple[PlanEntry, Callable[[], tuple[Tensor, ...]]]


def remake(units: Sequence[Unit], ranks: ProgramRanks, making: Iterable[_Making]) -> None:
    """Make cores anew, all of them or none; a gradient that they hold is dropped.

    Args:
        units: What this rank composes.
        ranks: A failure on one of them is raised on all.
        making: Weights, and what makes their cores; a rank runs those whose cores it holds. What
            is whole in there of the others' is freed one by one.
    """
    owned = {key for unit in units for key in unit.keys}
    keys: list[str] = []
    mine: list[_Making] = []
    for entry, make in making:
        keys.append(entry.key)
        if entry.key in owned:
            mine.append((entry, make))
    made = ranks.together(lambda: [make() for _entry, make in mine])
    cores: dict[str, Tensor] = {}
    for (entry, _make), parts in zip(mine, made, strict=True):
        cores.update(zip(entry.core_names, parts, strict=True))
    for unit in units:
        if not set(keys).isdisjoint(unit.keys):
            unit.fill(cores)
            unit.drop_grad(keys)


def seed(
    units: Sequence[Unit], bounds: Mapping[str, Bound], ranks: ProgramRanks
) -> tuple[str, ...]:
    """Make the cores anew that can start along a gradient, of weights that have one.

    Raises:
        InputError: A gradient holds NaN or infinity; with the weight's name.
    """
    found = [b for b in bounds.values() if b.entry.by.seeds and b.parameter.grad is not None]

    def along(bound: Bound, weight: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
        try:
            return tuple(bound.entry.by.seeded(weight, gradient, bound.entry.spec))
        except InputError as error:
            raise InputError(
                f"the weight {bound.key!r} cannot start along its gradient: {error}; skip steps "
                "whose gradients overflow, and seed after the first that does not"
            ) from error

    # Sharded tensors are gathered by all ranks together, in one order.
    remake(
        units,
        ranks,
        (
            (b.entry, partial(along, b, b.read(), whole(b.parameter.grad)))
            for b in found
            if b.parameter.grad is not None
        ),
    )
    return tuple(bound.key for bound in found)
