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

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor

from opdf_compile.errors import PlanError
from opdf_compile.planning import Plan
from opdf_compile.training.hoisted.binding import local
from opdf_compile.training.hoisted.direct import Direct
from opdf_compile.training.hoisted.unit import Unit


def require_multilinear(plan: Plan) -> None:
    """Refuse decay="weight" for a parametrization that does not say what scales its weight.

    Raises:
        PlanError: With the name of the first one.
    """
    for entry in plan.entries:
        if entry.terms is None and entry.untrained:
            raise PlanError(
                f"weight_decay is not 0, decay='weight' scales the weight through its cores, and of"
                f" {entry.key!r} a part is frozen; give decay='cores', which decays those that are "
                "trained towards that part alone, or weight_decay=0"
            )
        if entry.terms is None:
            raise PlanError(
                f"weight_decay is not 0, decay='weight' scales every core, and the parametrization "
                f"{entry.parametrization!r} of {entry.key!r} does not say that it is linear in each"
                " (multilinear = True); give decay='cores', or weight_decay=0"
            )


def decay(unit: Unit, factor: float, keys: Collection[str]) -> Callable[[], None] | None:
    """Scale the cores of a unit so that its weights are scaled by `factor`.

    Args:
        unit: Its cores are changed in place.
        factor: 1 - lr weight_decay.
        keys: The weights that had a gradient in this step; the others do not decay, as in torch.
            Of a unit all have one or none, because uneven batches were taken apart before.

    Returns:
        What takes it back, for a step that fails afterwards; None if nothing was scaled.
    """
    if factor == 1.0 or not any(key in keys for key in unit.keys):
        return None
    scales = [1.0] * len(unit.storage)
    terms = unit.terms
    if not terms:
        return None  # Its weights take no decay.
    for term in terms:
        for place, share in term.items():
            scales[place] *= abs(factor) ** share
        if factor < 0:
            # A step so large that it turns the weight around: one core takes the sign.
            scales[next(iter(term))] *= -1.0
    return _scale(unit, scales)


def decay_direct(direct: Direct, factor: float) -> Callable[[], object] | None:
    """Scale a weight that has no cores, in place; returns what takes it back, as `decay` does."""
    if factor == 1.0 or not direct.by.decays:
        return None
    return _scaled([local(direct.parameter.detach())], [factor])


def _scale(unit: Unit, scales: list[float]) -> Callable[[], None]:
    """Multiply each core; returns what takes it back where nobody wrote to the core since."""
    settled = None if unit.moved else unit.settled
    take_back = _scaled([core.detach() for core in unit.storage], scales)

    def undo() -> None:
        # Unless W was written in between, of the scaled cores: then it must be written again.
        if take_back() and unit.settled == settled:
            unit.settle()

    return undo


def _scaled(cores: list[Tensor], scales: list[float]) -> Callable[[], bool]:
    """Multiply tensors; returns what takes it back and tells whether it could with all of them.

    The quotient of a rounded product is the core again, but for the last bit of about 1 - s of its
    entries. Where s is far from 1 that is many of them, and all is lost for s = 0: then, and only
    then, copies are kept until the step is done.
    """
    kept = {k: cores[k].clone() for k, scale in enumerate(scales) if abs(scale) < 0.5}
    for scale in dict.fromkeys(scales):
        alike = [core for core, own in zip(cores, scales, strict=True) if own == scale]
        torch._foreach_mul_(alike, scale)
    versions = [core._version for core in cores]

    def undo() -> bool:
        untouched = [k for k, core in enumerate(cores) if core._version == versions[k]]
        for k in untouched:
            cores[k].copy_(kept[k] if k in kept else cores[k] / scales[k])
        return len(untouched) == len(cores)

    return undo


def shares_of(units: Iterable[Unit], direct: Iterable[Direct]) -> dict[int, float]:
    """By id of a core the share of the decay of W that scales it; they add up to 1 in a product.

    A weight that has no cores takes all of it, or none.
    """
    shares = {id(weight.parameter): float(weight.by.decays) for weight in direct}
    for unit in units:
        for term in unit.terms:
            for place, share in term.items():
                core = id(unit.storage[place])
                shares[core] = shares.get(core, 0.0) + share
    return shares
