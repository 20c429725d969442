"""Matrices whose entries are written down as cosines, for starts that must not draw at random."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


def cosine_frame(rows: int, columns: int, like: Tensor) -> Float[Tensor, "rows columns"]:
    """The first rows and columns of the orthogonal matrix of the DCT-IV of the larger size N.

        P[i, j] = (2 / N)^(1/2) cos(pi (i + 1/2) (j + 1/2) / N)          N = max(rows, columns)

    The shorter of its rows and columns are orthonormal, and no two of either are equal.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        like: Gives dtype and device.
    """
    size = max(rows, columns)
    i, j = (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5 for n in (rows, columns))
    return math.sqrt(2 / size) * torch.cos(math.pi / size * torch.outer(i, j))
