"""Weight decay of the weight, carried by its cores.

Plain decoupled decay takes W to (1 - lr wd) W. The chain is linear in each of its n cores, so

    T_k <- (1 - lr wd)^(1/n) T_k   for every k     gives exactly     W <- (1 - lr wd) W

and spreads the factor evenly, which keeps the balance of the cores. Letting the optimizer decay the
cores itself takes W to (1 - lr wd)^n W, and its small singular values no differently from the large
ones only as long as nothing else moves them: an n-fold, spectrum-dependent pull.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from opdf_compile.errors import PlanError
from opdf_compile.parametrizations.registry import get
from opdf_compile.plan.value import Plan
from opdf_compile.training.hoisted.unit import Unit


def require_multilinear(plan: Plan) -> None:
    """Refuse decay="weight" for a parametrization that does not say it is linear in each core.

    Raises:
        PlanError: With the name of the first one.
    """
    for entry in plan.entries:
        if not getattr(get(entry.parametrization), "multilinear", False):
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
    cores = [core.detach() for core in unit.storage]
    torch._foreach_mul_(cores, abs(factor) ** (1 / len(cores)))
    if factor < 0:
        # A step so large that it turns the weight around: one core takes the sign.
        cores[0].neg_()
