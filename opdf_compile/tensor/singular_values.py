"""Singular values: a matrix into two balanced factors, by products of matrices and eigenvalues.

Gauge. With M = U S V^T: A = U S^{1/2}, B = S^{1/2} V^T, so that A^T A = B B^T = S.

Null directions. Where a singular value is zero, both factors would be zero, and as dL/dA = G B^T,
dL/dB = A^T G, neither would ever move: the product could never gain rank. So A keeps the direction,
a_k = u_k sqrt(rms of the other singular values) (1 for the zero matrix), and b_k = 0. Still
a_k b_k = 0, hence lossless, and dL/db_k = a_k^T G is in general not zero. A singular value counts
as zero when s <= max(m, n) eps s_max, in float64, which is below what the factorisation resolves;
dropping those changes M by less than sqrt(n) max(m, n) eps ||M||, 6e-11 at 4096.

The factorisation of M in R^{m x n}, m >= n. The eigenvectors of the Gram matrix are V, and M V is
U S. It costs a third of an SVD, but squaring loses the small singular values: what eigh
returns is exact for M^T M + D with ||D|| = O(eps) s_max^2 (Golub & Van Loan, Matrix Computations,
section 8.1), hence the columns p_i of M V have

    |p_i^T p_j| <= |D| ,   |u_i^T u_j| <= |D| / (s_i s_j)     with |D| = O(eps) s_max^2

which is below float32's eps while s_i, s_j >= t s_max, t = sqrt(eps / eps_32) = 4e-5. Those are
resolved. The others are not, but they span the right space, and M restricted to it is a smaller
matrix whose largest singular value is t times smaller: it is factorised in the same way, and so on.
Three rounds come down to t^3 s_max = 8e-14 s_max, the fourth to where everything is null. With
M V = [U_1 S_1, P] and U_1, S_1 resolved, P is first made orthogonal to U_1:

    X = U_1^T P        P' = P - U_1 X        M = U_1 S_1 (V_1 + V_2 X^T S_1^{-1})^T + P' V_2^T

M is met whatever X is. The entries of X, below |D| / s_i, move V_1 by |D| / s_i^2, again below
float32's eps, eps_32. P' keeps (1 - U_1^T U_1) X, below eps_32 |D| / t s_max, which is eps_32 of
singular values down to 5e-12 s_max; of smaller ones later rounds take it out, and without a later
round |u_i^T u_j| is below eps_32 / (t max(m, n)), as s_j > max(m, n) eps s_max. The products'
own rounding leaves O(eps) s_max in P', as it does in an SVD of M. Where all that is left is null, U
is completed by Householder reflections.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    # jaxtyping states shapes; only the tests, which execute them, need it installed.
    from jaxtyping import Float

EPS = torch.finfo(torch.float64).eps

# t^2: (s / s_max)^2 down to which one round resolves singular values, see the top.
GRAM_LIMIT = EPS / torch.finfo(torch.float32).eps

# Entries this close to the largest count as equally large, so that rounding cannot choose between
# them when a singular vector's sign is fixed.
SIGN_TOLERANCE = 1e-6

# Columns of a Gram matrix that are made at once.
_STRIP = 256

# Entries between 2^-200 and 2^200: their squares, and those of 1e-14 of them, are normal numbers.
_MODERATE = 100


def balanced_factors(
    arranged: Float[Tensor, "left right"],
) -> tuple[Float[Tensor, "left bond"], Float[Tensor, "bond right"]]:
    """A = U S^{1/2} and B = S^{1/2} V^T, with signs fixed and null directions kept alive."""
    scaled, root = _scale(arranged)
    left, values, right = _singular_triplets(scaled)
    null = values <= _floor(arranged, values[0])
    alive = values[~null]
    spare = alive.square().mean().sqrt() if len(alive) else values.new_tensor(1.0 / root**2)
    scale = _signs(left) * root
    left.mul_(scale * torch.where(null, spare, values).sqrt())
    right.mul_((scale * torch.where(null, 0.0, values).sqrt())[:, None])
    return left, right


def singular_frames(
    matrix: Float[Tensor, "left right"], rank: int
) -> tuple[Float[Tensor, "left rank"], Float[Tensor, "rank right"]]:
    """U_r and V_r^T of the leading singular values, orthonormal, with signs fixed; also of zeros.

    Args:
        matrix: In float64.
        rank: r, at most the smaller of its sizes.
    """
    left, _values, right = _singular_triplets(_scale(matrix)[0])
    left, right = left[:, :rank], right[:rank]
    signs = _signs(left)
    return left * signs, right * signs[:, None]


def _scale(matrix: Float[Tensor, "left right"]) -> tuple[Float[Tensor, "left right"], float]:
    """(M / r^2, r) with r a power of two, so that no square overflows or underflows.

    r is 1 where M's largest entry is moderate, and else brings it near 1. Dividing by a power of
    two is exact. Two halves, because 2^1074 itself is not a float64.
    """
    largest = float(torch.linalg.vector_norm(matrix, math.inf))
    half = math.frexp(largest)[1] // 2 if largest else 0
    if abs(half) <= _MODERATE:
        return matrix, 1.0
    return (matrix * 2.0**-half).mul_(2.0**-half), 2.0**half


def _singular_triplets(
    matrix: Float[Tensor, "left right"],
) -> tuple[Float[Tensor, "left bond"], Float[Tensor, " bond"], Float[Tensor, "bond right"]]:
    """The thin SVD U, s, V^T, descending, zeros exact; U and V orthogonal to float32's eps."""
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = _singular_triplets(matrix.mT)
        return left.mT, values, right.mT
    bond = matrix.shape[1]
    left, right = torch.empty_like(matrix), torch.eye(bond).to(matrix)
    values = matrix.new_zeros(bond)
    rest, done, floor = matrix, 0, 0.0
    while done < bond and float(torch.linalg.vector_norm(rest)) > floor:
        turn = torch.linalg.eigh(_gram(rest))[1].mT.flip(0)
        rest = rest @ turn.mT
        right[done:] = turn @ right[done:] if done else turn
        sizes = torch.linalg.vector_norm(rest, dim=0)
        floor = floor or float(_floor(matrix, sizes[0]))
        resolved = int((sizes >= sizes[0] * GRAM_LIMIT**0.5).cumprod(0).sum())
        end = done + resolved
        values[done:end] = sizes[:resolved]
        torch.div(rest[:, :resolved], sizes[:resolved], out=left[:, done:end])
        rest, done = rest[:, resolved:], end
        if done < bond:
            along = left[:, :done].mT @ rest
            rest = torch.addmm(rest, left[:, :done], along, alpha=-1)
            right[:done].addmm_(along / values[:done, None], right[done:])
    if done < bond:
        # What is left is null. Householder's Q is orthogonal, also of columns of zeros.
        left[:, done:] = 0.0
        left[:, done:] = torch.linalg.qr(left)[0][:, done:]
    return left, values, right


def _floor(matrix: Float[Tensor, "left right"], largest: Tensor) -> Tensor:
    """The singular value at and below which a direction counts as null."""
    return max(matrix.shape) * EPS * largest


def _gram(matrix: Float[Tensor, "left right"]) -> Float[Tensor, "right right"]:
    """M^T M, its lower triangle in strips: eigh reads no more, and it is little over half of it."""
    size = matrix.shape[1]
    gram = matrix.new_zeros(size, size)
    for start in range(0, size, _STRIP):
        stop = min(start + _STRIP, size)
        torch.mm(matrix[:, start:stop].mT, matrix[:, :stop], out=gram[start:stop, :stop])
    return gram


def _signs(left: Float[Tensor, "left bond"]) -> Float[Tensor, " bond"]:
    """The signs that make each column's largest entry positive, the first of equal ones."""
    highest, lowest = left.amax(0), -left.amin(0)
    signs = torch.where(highest < lowest, -1.0, 1.0).to(left.dtype)
    least = torch.maximum(highest, lowest) * (1 - SIGN_TOLERANCE)
    tied = torch.minimum(highest, lowest) >= least
    if bool(tied.any()):
        columns = left[:, tied]
        first = (columns.abs() >= least[tied]).int().argmax(0)
        signs[tied] = torch.where(columns.gather(0, first[None])[0] < 0, -1.0, 1.0).to(left.dtype)
    return signs
