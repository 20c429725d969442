"""What a user reads when an optimizer class cannot be wrapped."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from opdf_compile.training.optimizer.arguments import Maker, class_name
from opdf_compile.training.optimizer.groups import Group, options_of

# What opdf.plan takes and Overparam does not.
_PLANS = ("overhead", "include", "exclude", "min_size", "parametrization", "rules")
# What a class calls its first argument that reads the parameters out of a module by itself.
_MODELS = ("model", "module")


def refusal(
    make: Maker,
    options: Mapping[str, Any],
    groups: Sequence[Group],
    error: Exception,
    *,
    bare: bool,
) -> str:
    """Why a class cannot be wrapped.

    `bare`: it takes parameters, and refuses them in a group without options.
    """
    asked = [name for name in _PLANS if name in options]
    if asked:
        return (
            f"{asked[0]} is an option of plan, not of Overparam or {class_name(make)}; give "
            f"plan=opdf.plan(student, {asked[0]}=..)"
        )
    if bare or _first(make) in _MODELS:
        found = "parameters and no param groups" if bare else f"a {_first(make)} and no parameters"
        return (
            f"{class_name(make)} takes {found}, wanted a class that takes param groups, because "
            "cores are given to it in groups and belong to no module; wrap another one, such as "
            "torch.optim.AdamW"
        )
    of = f"the {len(groups)} param groups with " if len(groups) > 1 else ""
    keys = dict.fromkeys(key for group in groups for key in options_of(group))
    within = f", in the groups {', '.join(keys)}" if keys else ""
    said = str(error) or type(error).__name__
    return (
        f"{class_name(make)} refuses {of}the options {', '.join(options) or '(none)'}{within}: "
        f"{said}; give options of that optimizer, in each group those that it wants there, or "
        "of Overparam"
    )


def _first(make: Maker) -> str | None:
    """What a class calls its first argument."""
    try:
        return next(iter(inspect.signature(make).parameters), None)
    except (TypeError, ValueError):  # Of what is built in nobody knows.
        return None


def refused_other(make: Maker, odd: Tensor, student: nn.Module, error: Exception) -> str:
    """Why a class cannot step a parameter that has no cores."""
    name = next((n for n, p in student.named_parameters() if p is odd), "?")
    return (
        f"{class_name(make)} refuses the student's {name!r} of shape {tuple(odd.shape)}, which has "
        f"no cores ({error}); leave such parameters out and step them with an optimizer of their "
        "own: Overparam([p for p in student.parameters() if p.ndim > 1], .., module=student), and "
        "torch.optim.AdamW over the others"
    )
