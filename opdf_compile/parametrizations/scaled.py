"""A matrix between gains of its rows and of its columns, and its gradients by formulas.

    W = diag(a) V diag(b)        a (.., rows, 1),  V (.., rows, cols),  b (.., 1, cols)
    dV = a G b,   da = (V G) b^T,   db = a^T (V G)        G = dL/dW; V G entry by entry

a and b are functions of the first two tensors, entry by entry; V is the third. Autograd does this
in a dozen passes, most into new memory of V's size, and a system that clears the pages of such
memory takes longer for it than the products take. Here a block of rows stays in the cache from its
first product to its last, and dV alone is new.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from opdf_compile.parametrizations.base import Parametrization
from opdf_compile.parametrizations.matrix_spec import MatrixSpec

S = TypeVar("S", bound=MatrixSpec)
# Entries of a block on a CPU. Elsewhere a launch costs more than the passes that it spares.
_BLOCK = 2**17


class Scaled(Parametrization[S]):
    """W = diag(a) V diag(b). Stacks of tensors, one axis more in front, are done in one go."""

    def compose(self, tensors: Sequence[Tensor], spec: S) -> Tensor:
        """The weight: two products, entry by entry."""
        (a, b), matrix = self.gains(tensors), tensors[2]
        return (a * matrix * b).reshape(spec.shape).to(getattr(torch, spec.dtype))

    def outside_clip_norm(self, spec: S) -> tuple[int, ...]:
        """Both gains: the gradient of one is a sum over its row or column."""
        return (0, 1)

    def gain(self, tensor: Tensor) -> Tensor:
        """The gain, of a or b, that a tensor stands for."""
        return tensor

    def gains(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The gains a and b."""
        return self.gain(tensors[0]), self.gain(tensors[1])

    def slope(self, gain: Tensor) -> Tensor | None:
        """Of a gain by its tensor's entry; None where they are the same."""
        return None

    def make(self, gains: tuple[Tensor, Tensor], matrix: Tensor, out: Tensor) -> None:
        """Write what `compose` gives, before its cast, into a contiguous tensor of its shape."""
        a, b = gains
        for part, rows, made in _blocks(matrix, a, out.view(matrix.shape)):
            torch.mul(rows, part, out=made)
            made.mul_(b)

    def pull(
        self, gains: tuple[Tensor, Tensor], matrix: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dL/dtensor of the first three from dL/dW, in their dtype; without autograd."""
        a, b = gains
        of_matrix, sums, columns = torch.empty_like(matrix), [], []
        blocks = _blocks(matrix, gradient.reshape(matrix.shape), a, of_matrix)
        for part, given, rows, made in blocks:
            product = part * given
            sums.append(product @ b.mT)
            columns.append(rows.mT @ product)
            torch.mul(given, b, out=made)
            made.mul_(rows)
        of_rows = torch.cat(sums, -2) if sums[1:] else sums[0]
        of_columns = torch.stack(columns).sum(0) if columns[1:] else columns[0]
        for gain, grad in ((a, of_rows), (b, of_columns)):
            slope = self.slope(gain)
            if slope is not None:
                grad.mul_(slope)
        return of_rows, of_columns, of_matrix


def norm_by_blocks(matrix: Tensor) -> Tensor:
    """Frobenius norm, of shape (1,), float64: squares of large entries overflow in float32."""
    parts = matrix.reshape(-1).chunk(_count(matrix))
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms)) if parts[1:] else norms[0]
    return norm.reshape(1)


def _blocks(matrix: Tensor, *others: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """A matrix and tensors with as many rows, block by block."""
    tensors, count = (matrix, *others), _count(matrix)
    if count == 1:
        return (tensors,)
    return zip(*(tensor.chunk(count, -2) for tensor in tensors), strict=True)


def _count(matrix: Tensor) -> int:
    """Blocks of a matrix."""
    return math.ceil(matrix.numel() / _BLOCK) if matrix.device.type == "cpu" else 1
