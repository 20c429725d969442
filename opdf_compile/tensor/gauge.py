"""Change of gauge: T_k -> Q_{k-1}^T T_k Q_k with orthogonal Q_k leaves the matrix as it is.

`aligned` finds the Q_k for which one chain's auxiliary cores are nearest to another's,

    min over Q of   sum over compared k of  ||Q_{k-1}^T S_k Q_k - T_k||^2 / size of T_k

The central core is compared with nothing, so the sides do not see each other, and on each side the
bonds are fixed from the end inwards. Each Q_k is an orthogonal Procrustes problem, Q_k = U V^T of
the singular vectors of S_k^T T_k (Schoenemann, Psychometrika 31, 1966). Where inner auxiliary cores
are identities, as they are in the paper's shapes, they add nothing to the sum and this is its
minimum. Elsewhere each Q_k is the best for the core that it closes, given those outside it; more
passes, over all bonds, gained less than 1e-4 of the sum on random matrices, so none are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from opdf_compile.errors import InternalError
from opdf_compile.tensor.canonical_form import is_identity

if TYPE_CHECKING:
    from jaxtyping import Float

    Core = Float[Tensor, "_left _out _in _right"]

# ||Q Q^T - 1|| <= eps x a small multiple of the size, with room.
_ORTHOGONAL = 1e-13


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
    """Q_0 .. Q_n; where nothing is compared, the identity."""
    count = len(cores)
    sizes = [1, *(core.shape[3] for core in cores)]
    gauges = [torch.eye(size, dtype=cores[0].dtype, device=cores[0].device) for size in sizes]
    for k in (k for k in range(count) if targets.keys() >= set(range(k + 1))):
        gauges[k + 1] = _after(gauges[k], cores[k], targets[k])
    for k in (k for k in reversed(range(count)) if targets.keys() >= set(range(k, count))):
        gauges[k] = _before(cores[k], gauges[k + 1], targets[k])
    return gauges


def _after(before: Tensor, core: Tensor, target: Tensor) -> Tensor:
    """The gauge right of a core whose left one is fixed."""
    if is_identity(core) and is_identity(target):
        return before  # It stays the identity if both its sides turn alike.
    half = (before.mT @ core.flatten(1)).reshape(-1, core.shape[3])
    return _polar(half.mT @ target.flatten(0, 2))


def _before(core: Tensor, after: Tensor, target: Tensor) -> Tensor:
    """The gauge left of a core whose right one is fixed."""
    if is_identity(core) and is_identity(target):
        return after
    return _polar((core @ after).flatten(1) @ target.flatten(1).mT)


def _polar(correlation: Tensor) -> Tensor:
    """The orthogonal Q with the largest trace of Q^T correlation."""
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
