"""The canonical gauge of a chain: balanced at every bond, and so a function of the matrix alone.

    R_k(W) = U_k S_k V_k^T  at bond k      product of the cores left of it   = U_k S_k^(1/2)
                                           product of the cores right of it  = S_k^(1/2) V_k^T

What is left of the freedom G, G^-1 are the orthogonal G that commute with S_k: rotations among
equal singular values, and signs. So the cores of two matrices in this form can be compared after an
orthogonal change of gauge (see `tensor.gauge`), whatever gauge they came in.

With two modes that are not 1, `decompose` gives this form already. In general, with A_k = U_k
S_k^(1/2), B_k = S_k^(1/2) V_k^T, their pseudo-inverses, and a pivot p near the middle,

    C_k = A_{k-1}^+ A_k   (k < p)      C_p = A_{p-1}^+ R B_p^+      C_k = B_{k-1} B_k^+   (k > p)

and a core whose modes are 1 is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from opdf_compile.tensor.chain import Chain
from opdf_compile.tensor.decomposition import decompose, interleaved

if TYPE_CHECKING:
    from jaxtyping import Float

# Balance of rounded cores, relative: float32 rounds A^T A by 1e-7 of its trace at most.
_BALANCED = 1e-6


def canonical(
    matrix: Float[Tensor, "_rows _cols"], chain: Chain
) -> tuple[Float[Tensor, "_left _out _in _right"], ...]:
    """The cores of a matrix in the canonical gauge, float64.

    Null directions of a bond keep a direction in the core at the outer side, as in `decompose`.

    Args:
        matrix: The weight as rows x columns.
        chain: Modes with the matrix's sizes as products.

    Raises:
        InputError: The sizes differ from the chain's, or an entry is NaN or infinite.
    """
    wide = matrix.detach().double()
    if len(_live(chain)) <= 2:
        return decompose(wide, chain)
    return _by_bonds(wide, chain)


def is_canonical(cores: Sequence[Float[Tensor, "_left _out _in _right"]], chain: Chain) -> bool:
    """Whether cores are in the canonical gauge for sure, as `decompose` leaves the paper's shapes.

    It looks at chains with two modes that are not 1 only; of longer ones, and where there are null
    directions, the answer is no.
    """
    live = _live(chain)
    if len(live) != 2 or not all(
        is_identity(core) for k, core in enumerate(cores) if k not in live
    ):
        return False
    left, right = (cores[k].detach().double() for k in live)
    outer = left.flatten(0, 2).mT @ left.flatten(0, 2)
    inner = right.flatten(1) @ right.flatten(1).mT
    return bool((outer - inner).norm() <= _BALANCED * outer.diagonal().sum())


def _live(chain: Chain) -> list[int]:
    """Places of the cores whose modes are not both 1."""
    return [k for k, size in enumerate(chain.products) if size > 1]


def is_identity(core: Float[Tensor, "_left _out _in _right"]) -> bool:
    """Whether a core has modes of 1 and is the identity of its bond, bit for bit."""
    size = core.shape[0]
    eye = torch.eye(size, dtype=core.dtype, device=core.device)
    return core.shape == (size, 1, 1, size) and torch.equal(core.detach()[:, 0, 0], eye)


class _Half(NamedTuple):
    """One side of a matrix at a bond.

    Attributes:
        factor: U S^(1/2), (outer, bond).
        inverse: Its pseudo-inverse, S^(-1/2) U^T; zero for null directions.
    """

    factor: Tensor
    inverse: Tensor


def _half(arranged: Float[Tensor, "outer inner"]) -> _Half:
    rows, cols = arranged.shape
    one, other = decompose(arranged, Chain((rows, 1), (1, cols)))
    factor = one.reshape(rows, -1)
    null = other.flatten(1).norm(dim=1) == 0
    squares = factor.square().sum(0)
    inverse = torch.where(null, 0.0, 1.0 / squares)[:, None] * factor.mT
    return _Half(factor, inverse)


def _by_bonds(matrix: Tensor, chain: Chain) -> tuple[Tensor, ...]:
    entries = interleaved(matrix, chain).reshape(-1)
    live = _live(chain)
    pivot = min(live, key=lambda k: (abs(k - chain.central), k))
    made: dict[int, Tensor] = {}
    unit = _Half(entries.new_ones(1, 1), entries.new_ones(1, 1))
    left = right = unit
    for k in (k for k in live if k < pivot):
        half = _half(entries.reshape(prod(chain.products[: k + 1]), -1))
        made[k] = left.inverse @ half.factor.reshape(left.factor.shape[0], -1)
        left = half
    for k in (k for k in reversed(live) if k > pivot):
        half = _half(entries.reshape(prod(chain.products[:k]), -1).mT)
        # The other side is read backwards: (bond, p_k, what was right of it).
        made[k] = half.factor.mT.reshape(-1, right.factor.shape[0]) @ right.inverse.mT
        right = half
    middle = left.inverse @ entries.reshape(left.factor.shape[0], -1)
    made[pivot] = middle.reshape(-1, right.factor.shape[0]) @ right.inverse.mT
    return tuple(
        (made[k] if k in made else torch.eye(shape[0]).to(entries)).reshape(shape)
        for k, shape in enumerate(chain.core_shapes)
    )
