"""The student's cores turned to the teacher's, and the teacher's as they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from opdf_compile.distill.alignment.pairs import Pair
from opdf_compile.errors import InputError
from opdf_compile.tensor import aligned, canonical, distance, is_canonical
from opdf_compile.training import Expanded, WeightProgram

_Cores = tuple[Tensor, ...]


def teacher_cores(pair: Pair, weight: Tensor, like: Sequence[Tensor]) -> dict[int, Tensor]:
    """The teacher's cores that are compared, by place, as the student's are stored.

    Raises:
        InputError: The weight holds NaN or infinity; with its name.
    """
    assert pair.teacher_spec is not None
    matrix = pair.teacher_spec.matrix(weight.to(like[0].device))
    try:
        cores = canonical(matrix, pair.teacher_spec.chain)
    except InputError as error:
        raise InputError(
            f"the teacher's weight {pair.teacher!r} cannot be factorised: {error}; repair it, or "
            "take it out of the layer map"
        ) from error
    return {k: cores[k].to(like[k].dtype) for k in pair.compared}


def turned(
    cores: _Cores, pair: Pair, weight: Tensor, targets: Mapping[int, Tensor]
) -> tuple[_Cores, float]:
    """The student's cores in the gauge nearest to the teacher's, float64, and their loss.

    Args:
        cores: In any gauge.
        pair: Knows their chain.
        weight: What they make.
        targets: The teacher's cores, by place.
    """
    assert pair.spec is not None
    chain = pair.spec.chain
    if is_canonical(cores, chain):  # As decompose leaves most: not again.
        start: _Cores = tuple(core.detach().double() for core in cores)
    else:
        start = canonical(pair.spec.matrix(weight), chain)
    wide = {k: target.double() for k, target in targets.items()}
    moved = aligned(start, wide)
    return moved, distance(moved, wide)


def composed(model: Expanded, key: str) -> Tensor:
    """A weight of an Expanded in float64."""
    entry = next(entry for entry in model.plan.entries if entry.key == key)
    return entry.compose(core.detach().double() for core in model.cores(key))


def put_cores(model: WeightProgram | Expanded, key: str, cores: _Cores) -> None:
    """Overwrite the cores of one weight, in place."""
    if isinstance(model, WeightProgram):
        entry = next(entry for entry in model.plan.entries if entry.key == key)
        model.fill(dict(zip(entry.core_names, cores, strict=True)))
        return
    with torch.no_grad():  # In place: an optimizer may hold these Parameters already.
        for stored, core in zip(model.cores(key), cores, strict=True):
            stored.copy_(core)
