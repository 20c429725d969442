"""Whether an optimizer class goes by its param groups, found out on throwaway instances.

    {p, q; options}   against   {p; options} {q; options}      the same steps, or not

A class that keeps a figure for each group, or draws by the places in it, steps otherwise where the
cores of a group and its other parameters are two; a user is told so.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.training.optimizer.arguments import Maker, class_name
from opdf_compile.training.optimizer.groups import Group, decays, options_of, tensors
from opdf_compile.training.optimizer.trials import entries_after, kinds_of, moving, trial_group

_LOG = logging.getLogger("opdf_compile")
# The first step only fills the state of some; what differs by less than a thousandth of the way is
# the rounding of sums in another order.
_STEPS, _LEAST = 3, 1e-3
_SHAPES, _SLOPES = ((4, 3), (6, 4)), (1.0, -30.0)


def warn_of_halves(make: Maker, options: Mapping[str, Any], split: Sequence[Group]) -> None:
    """Tell of a class whose steps over two groups are not those over one.

    `split` are the groups whose cores get a group of their own.
    """
    if any(goes_by_group(make, options, split[place]) for place in set(kinds_of(split))):
        _LOG.warning(
            "%s goes by its param groups (it may keep a figure for each), and a group with "
            "weight_decay is two of them: the cores of planned weights, which decay by themselves, "
            "and its other parameters. Its steps differ a little from those over one; "
            "decay='cores', or weight_decay=0, leaves the group whole",
            class_name(make),
        )


def halved(
    groups: Sequence[Group], shown: Sequence[Group], matched: Collection[int]
) -> list[Group]:
    """The groups that are two to the class: something decays, and not all are cores or none is.

    `shown` are the user's groups with all options that they have, `matched` ids of weights.
    """
    return [
        of
        for given, of in zip(groups, shown, strict=True)
        if decays(of) and len({id(p) in matched for p in tensors(given)}) > 1
    ]


def goes_by_group(make: Maker, options: Mapping[str, Any], group: Group) -> bool:
    """Whether two parameters in two groups are stepped otherwise than in one.

    The group is tried without decay, which is no matter here.
    """
    start = torch.cat([p.flatten() for p in _parameters()]).detach()
    one, two = (_stepped(make, options, group, apart=apart) for apart in (False, True))
    if one is None or two is None:
        return False  # It cannot be tried out.
    return float((one - two).norm()) > _LEAST * float((one - start).norm())


def _parameters() -> list[nn.Parameter]:
    values = (torch.linspace(0.5, 2.0, torch.Size(shape).numel()).view(shape) for shape in _SHAPES)
    return [nn.Parameter(value) for value in values]


def _stepped(
    make: Maker, options: Mapping[str, Any], group: Group, *, apart: bool
) -> Tensor | None:
    """The entries of both parameters after some steps; None if the class fails."""
    parameters = _parameters()
    bare = {**options_of(moving(group, group)), "weight_decay": 0.0}
    members = [[p] for p in parameters] if apart else [parameters]
    groups = [trial_group(bare, of) for of in members]

    def slope(step: int, place: int, p: Tensor) -> Tensor:
        return _SLOPES[place] * torch.linspace(1.0, 3.0 + step, p.numel())

    return entries_after(make, options, groups, slope, _STEPS)
