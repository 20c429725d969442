"""Decompose: a matrix into the cores of a full-bond MPO, without loss, with one factorisation.

Symbols: p_k = i_k j_k; L_k = p_1 .. p_k; R_k = p_{k+1} .. p_n; d_k = min(L_k, R_k); c the first k
with the largest d_k; R(W) in R^{L_c x R_c} the matrix with its modes interleaved as
(i_1, j_1, .., i_c, j_c; i_{c+1}, j_{c+1}, .., i_n, j_n).

One factorisation R(W) = A B, of inner size d_c, is enough for every chain (arXiv 2411.06448 needs
one SVD per bond):

* Left of c. L_k rises and R_k falls with k, so d_k < d_c for k < c means d_k = L_k. Core k then has
  the shape (L_{k-1}, i_k, j_k, L_k) and is the identity of L_k, reshaped. Core c has the shape
  (L_{c-1}, i_c, j_c, d_c) and is A, reshaped.
* Right of c. Let t > c be the first core with p_t > 1 (the last core if there is none). The cores
  between c and t have p_k = 1 and equal bonds: identities of d_c. From t on d_k = R_k: for k >= t,
  L_k > L_c, and L_k < R_k would give d_k = L_k > d_c where d_c = L_c, and where d_c = R_c < L_c it
  contradicts R_k <= R_c. So core t has the shape (d_c, i_t, j_t, R_t), and B, of shape
  (d_c, R_c = p_t R_t), fits it. The cores right of t are (R_{k-1}, i_k, j_k, R_k) = (p_k R_k, ..):
  identities of R_{k-1}, reshaped.

The gauge and the factorisation, A = U S^{1/2} and B = S^{1/2} V^T: `tensor.singular_values`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from opdf_compile.errors import InputError
from opdf_compile.tensor.chain import Chain, CoreShape
from opdf_compile.tensor.singular_values import balanced_factors

if TYPE_CHECKING:
    # jaxtyping states shapes; only the tests, which execute them, need it installed.
    from jaxtyping import Float


def core_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a weight's cores: float32 for half weights, else the weight's own.

    Rounding cores to bfloat16 would lose 2e-3 of the weight.

    Raises:
        InputError: The dtype is not a floating-point type that can be decomposed.
    """
    if dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    if dtype in (torch.float32, torch.float64):
        return dtype
    raise InputError(f"only float16, bfloat16, float32 and float64 decompose, found {dtype}")


def decompose(
    matrix: Float[Tensor, "_rows _cols"], chain: Chain, *, device: torch.device | str | None = None
) -> tuple[Float[Tensor, "_left _out _in _right"], ...]:
    """Factorise a matrix into the cores of `chain`, in float64, then round once.

    Rounding the cores to float32 (unit roundoff u = 2^-24) costs ||E||_F <= (2u + u^2) ||W||_F =
    1.2e-7 ||W||_F: A is rounded to A + dA with |dA| <= u |A|, column k of A is s_k^{1/2} u_k, row k
    of B is s_k^{1/2} v_k^T, hence ||dA B||_F = ||dU S V^T||_F <= u ||U S||_F = u ||W||_F, and the
    same for dB. The identities are exact, also as factors of a product. What is left of the limit
    1e-6 ||W||_F is for the one inexact product A B of a float32 compose, whose rounding errors add
    up like a random walk to about 0.4 u sqrt(d_c / 6) ||W||_F, which is 3e-7 ||W||_F at d_c = 1152
    (measured: 2.6e-7 to 3.5e-7, d_c 1152 to 1600, random, flat, decaying and positive weights). No
    refinement of B can lower either share, so none is made. Below float32's smallest normal number,
    1.2e-38, composed entries keep float32's absolute accuracy there, 1.4e-45, not a relative one.

    Args:
        matrix: The weight as rows x columns (out features x in features), any float dtype.
        chain: Modes with the matrix's sizes as products.
        device: Where to factorise (in float64); the cores come back on the matrix's device.

    Returns:
        Core k of shape (d_{k-1}, i_k, j_k, d_k), contiguous, of dtype `core_dtype(matrix.dtype)`;
        none requires grad. The same matrix, chain, device and thread count give the same cores.

    Raises:
        InputError: The sizes differ from the chain's, or an entry is NaN, infinite or not there.
    """
    dtype = core_dtype(matrix.dtype)
    if tuple(matrix.shape) != (chain.rows, chain.cols):
        found, wanted = tuple(matrix.shape), (chain.rows, chain.cols)
        raise InputError(f"a matrix of shape {found} was found, {wanted} is wanted by the modes")
    require_values(matrix)
    with torch.no_grad():
        centre = _centre(chain)
        # R(W) is cut after core c; it is copied in the weight's own dtype, and widened then.
        cut = interleaved(matrix.detach(), chain).reshape(math.prod(chain.products[:centre]), -1)
        wide = cut.to(device=device or matrix.device, dtype=torch.float64)
        left, right = balanced_factors(wide)
        return _place(left.to(matrix.device, dtype), right.to(matrix.device, dtype), chain, centre)


def require_values(weight: Tensor) -> None:
    """Refuse a weight that nothing can be made of.

    Raises:
        InputError: An entry is NaN, infinite or not there.
    """
    if weight.is_meta:
        raise InputError("it has no values (the meta device); give the model its weights first")
    if not bool(torch.isfinite(weight).all()):
        count = int((~torch.isfinite(weight)).sum())
        raise InputError(f"{count} of {weight.numel()} entries are NaN or infinite")


def _centre(chain: Chain) -> int:
    """c, counted from 1: the first core whose right bond is the largest."""
    inner = chain.bonds[1:-1]
    return 1 + inner.index(max(inner))


def interleaved(matrix: Float[Tensor, "_rows _cols"], chain: Chain) -> Tensor:
    """The entries in the order (i_1, j_1, i_2, j_2, ..), one axis for each mode above 1."""
    # Modes of 1 are left out: torch allows 64 axes, and a copy is the faster the fewer there are.
    out_modes = [(k, 0, m) for k, m in enumerate(chain.out_modes) if m > 1]
    in_modes = [(k, 1, m) for k, m in enumerate(chain.in_modes) if m > 1]
    axes = out_modes + in_modes
    order = sorted(range(len(axes)), key=lambda axis: axes[axis][:2])
    return matrix.reshape([mode for _, _, mode in axes]).permute(order)


def _place(
    left: Float[Tensor, "_left bond"],
    right: Float[Tensor, "bond _right"],
    chain: Chain,
    centre: int,
) -> tuple[Float[Tensor, "_left _out _in _right"], ...]:
    """A into core c, B into core t, reshaped identities everywhere else (see the top)."""
    later = range(centre + 1, chain.cores + 1)
    taker = next((t for t in later if chain.products[t - 1] > 1), chain.cores)

    def core(number: int, shape: CoreShape) -> Tensor:
        if number == centre:
            return left.reshape(shape)
        if number == taker:
            return right.reshape(shape)
        size = max(shape[0], shape[3])
        return torch.eye(size, dtype=left.dtype, device=left.device).reshape(shape)

    cores = (core(number, shape) for number, shape in enumerate(chain.core_shapes, start=1))
    return tuple(tensor.contiguous() for tensor in cores)
