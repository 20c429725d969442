"""Weight decay of the weight, carried by its cores.

Plain decoupled decay takes W to (1 - lr wd) W. The chain is linear in each of its n cores, so

    T_k <- (1 - lr wd)^(1/n) T_k   for every k     gives exactly     W <- (1 - lr wd) W

and spreads the factor evenly, which keeps the balance of the cores. Letting the optimizer decay the
cores itself takes W to (1 - lr wd)^n W, and its small singular values no differently from the large
ones only as long as nothing else moves them: an n-fold, spectrum-dependent pull.

A weight that is a sum of products, or a power of one tensor, says what scales it as `terms`: each
summand is scaled like a chain, each tensor by the power that the term gives it.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from opdf_compile.errors import PlanError
from opdf_compile.parametrizations.base import Term
from opdf_compile.plan.value import Plan
from opdf_compile.training.hoisted.unit import Unit


def require_multilinear(plan: Plan) -> None:
    """Refuse decay="weight" for a parametrization that does not say what scales its weight.

    Raises:
        PlanError: With the name of the first one.
    """
    for entry in plan.entries:
        if entry.terms is None:
            raise PlanError(
                f"weight_decay is not 0, decay='weight' scales every core, and the parametrization "
                f"{entry.parametrization!r} of {entry.key!r} does not say that it is linear in each"
                " (multilinear = True); give decay='cores', or weight_decay=0"
            )


def decay(unit: Unit, factor: float, keys: Collection[str]) -> None:
    """Scale the cores of a unit so that its weights are scaled by `factor`.

    Args:
        unit: Its cores are changed in place.
        factor: 1 - lr weight_decay.
        keys: The weights that had a gradient in this step; the others do not decay, as in torch.
            Of a unit all have one or none, because uneven batches were taken apart before.
    """
    if factor == 1.0 or not any(key in keys for key in unit.keys):
        return
    for term in _terms(unit):
        by_share: dict[float, list[Tensor]] = {}
        for place, share in term.items():
            by_share.setdefault(share, []).append(unit.storage[place].detach())
        for share, cores in by_share.items():
            torch._foreach_mul_(cores, abs(factor) ** share)
        if factor < 0:
            # A step so large that it turns the weight around: one core takes the sign.
            unit.storage[next(iter(term))].detach().neg_()


def _terms(unit: Unit) -> tuple[Term, ...]:
    """The terms of a unit's weights, by place in its storage."""
    entry, count = unit.weights[0].entry, len(unit.storage)
    names = unit.members[0]
    if len(entry.core_names) != count:  # Several weights of shared cores.
        return (dict.fromkeys(range(count), 1 / count),)
    place = [names.index(name) for name in entry.core_names]
    return tuple({place[k]: share for k, share in term.items()} for term in entry.terms or ())
