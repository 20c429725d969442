"""How the parameters of a wrapped optimizer lie in its groups, by name.

What a class keeps in a form of its own speaks of parameters by their places, so it fits the very
layout that it was saved with: the same groups, the same order, the same stacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch.optim import Optimizer

from opdf_compile.errors import InputError
from opdf_compile.training.hoisted.unit import Unit

Labels = dict[int, str]
ParameterLayout = list[list[str]]


def labels_of(units: Iterable[Unit], names: Mapping[int, str]) -> Labels:
    """What the parameters of a wrapped optimizer are called, by id: cores and all others."""
    labels = dict(names)
    for unit in units:
        for place, core in enumerate(unit.storage):
            labels[id(core)] = "+".join(member[place] for member in unit.members)
    return labels


def layout_of(inner: Optimizer, labels: Labels) -> ParameterLayout:
    """The names of an optimizer's parameters, group by group."""
    return [[labels.get(id(p), "?") for p in group["params"]] for group in inner.param_groups]


def require_layout(saved: ParameterLayout, present: ParameterLayout, name: str) -> None:
    """Refuse a state that was kept for other groups, another order or other stacks.

    Raises:
        InputError: It fits in no way.
    """
    if saved == present:
        return
    raise InputError(
        f"the state holds what {name} keeps in a form of its own, for {_count(saved)} laid out in "
        f"{len(saved)} groups; here {_count(present)} lie in {len(present)} groups, or in another "
        "order; load it with the same ranks, groups, decay= and batched= as it was saved with"
    )


def _count(layout: ParameterLayout) -> str:
    return f"{sum(map(len, layout))} tensors"
