"""Change of gauge: T_k -> Q_{k-1}^T T_k Q_k with orthogonal Q_k leaves the matrix as it is.

`aligned` finds the Q_k for which one chain's auxiliary cores are nearest to another's,

    min over Q of   sum over compared k of  ||Q_{k-1}^T S_k Q_k - T_k||^2 / size of T_k

Each Q_k with the others fixed is an orthogonal Procrustes problem, Q_k = U V^T of the singular
vectors of the correlation of the two chains at bond k (Schoenemann, Psychometrika 31, 1966). The
central core is compared with nothing, so the sides do not see each other. One pass from each end is
the minimum where inner auxiliary cores are identities, as they are in the paper's shapes; else
passes are repeated while they gain: the sum falls with each, to a minimum that need not be the only
one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from opdf_compile.errors import InternalError
from opdf_compile.tensor.canonical import is_identity

if TYPE_CHECKING:
    from jaxtyping import Float

    Core = Float[Tensor, "_left _out _in _right"]

# ||Q Q^T - 1|| <= eps x a small multiple of the size, with room.
_ORTHOGONAL = 1e-13
_SWEEPS = 50
_GAIN = 1e-9


def aligned(cores: Sequence[Core], targets: Mapping[int, Core]) -> tuple[Core, ...]:
    """The same matrix in the gauge in which it is nearest to the targets.

    Args:
        cores: A chain, float64, in the canonical gauge.
        targets: Cores of another one, likewise, by place: some from the left end on, some from the
            right end on, never all; shapes there agree.

    Returns:
        The cores in the new gauge, float64.
    """
    gauges = _gauges(cores, targets)
    for gauge in {id(gauge): gauge for gauge in gauges}.values():
        _require_orthogonal(gauge)
    return tuple(_turned(core, gauges[k], gauges[k + 1]) for k, core in enumerate(cores))


def distance(cores: Sequence[Core], targets: Mapping[int, Core]) -> float:
    """The mean over the targets of the mean squared difference."""
    errors = [
        float((cores[k].detach() - target).double().square().mean())
        for k, target in targets.items()
    ]
    return sum(errors) / len(errors)


def _gauges(cores: Sequence[Tensor], targets: Mapping[int, Tensor]) -> list[Tensor]:
    count = len(cores)
    sizes = [1, *(core.shape[3] for core in cores)]
    gauges = [torch.eye(size, dtype=cores[0].dtype, device=cores[0].device) for size in sizes]
    left = [k for k in range(count) if targets.keys() >= set(range(k + 1))]
    right = [k for k in range(count) if targets.keys() >= set(range(k, count))]
    for k in left:
        gauges[k + 1] = _nearest(cores, targets, gauges, k + 1, [k])
    for k in reversed(right):
        gauges[k] = _nearest(cores, targets, gauges, k, [k])
    inner = [*left[1:], *right[:-1]]
    if all(_trivial(cores[k], targets[k]) for k in inner):
        return gauges
    return _swept(cores, targets, gauges, sorted({k + 1 for k in left} | set(right)))


def _swept(
    cores: Sequence[Tensor],
    targets: Mapping[int, Tensor],
    gauges: list[Tensor],
    bonds: list[int],
) -> list[Tensor]:
    best = _sum(cores, targets, gauges)
    for _ in range(_SWEEPS):
        for bond in (*bonds, *reversed(bonds)):
            around = [k for k in (bond - 1, bond) if k in targets]
            gauges[bond] = _nearest(cores, targets, gauges, bond, around)
        found = _sum(cores, targets, gauges)
        if best - found <= _GAIN * best:
            break
        best = found
    return gauges


def _sum(cores: Sequence[Tensor], targets: Mapping[int, Tensor], gauges: Sequence[Tensor]) -> float:
    return sum(
        float((_turned(cores[k], gauges[k], gauges[k + 1]) - target).square().mean())
        for k, target in targets.items()
    )


def _nearest(
    cores: Sequence[Tensor],
    targets: Mapping[int, Tensor],
    gauges: Sequence[Tensor],
    bond: int,
    around: Sequence[int],
) -> Tensor:
    """The orthogonal matrix at a bond that brings the cores around it nearest to the targets."""
    if len(around) == 1 and _trivial(cores[around[0]], targets[around[0]]):
        # The identity stays one if both its sides turn alike.
        return gauges[bond - 1] if around[0] < bond else gauges[bond + 1]
    correlation = torch.zeros_like(gauges[bond])
    for k in around:
        core, target = cores[k], targets[k]
        if k < bond:
            half = torch.einsum("ab,aijc->bijc", gauges[k], core)
            correlation += half.flatten(0, 2).mT @ target.flatten(0, 2) / target.numel()
        else:
            half = core @ gauges[k + 1]
            correlation += half.flatten(1) @ target.flatten(1).mT / target.numel()
    left, _values, right = torch.linalg.svd(correlation)
    nearest: Tensor = left @ right
    return nearest


def _require_orthogonal(gauge: Tensor) -> None:
    """Only then the matrix stays: each bond gets Q and Q^T."""
    size = gauge.shape[0]
    eye = torch.eye(size, dtype=gauge.dtype, device=gauge.device)
    if not float((gauge @ gauge.mT - eye).norm()) <= _ORTHOGONAL * size:
        raise InternalError("a change of gauge is not orthogonal; please report this")


def _turned(core: Tensor, before: Tensor, after: Tensor) -> Tensor:
    if before is after and is_identity(core):
        return core
    turned = (before.mT @ core.flatten(1)).reshape(-1, *core.shape[1:])
    return (turned @ after).contiguous()


def _trivial(core: Tensor, target: Tensor) -> bool:
    """Whether both cores are the identity."""
    return is_identity(core) and is_identity(target)
