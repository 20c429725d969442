"""W from its cores by one torch.einsum, from the definition of an MPO, with nothing of the package.

W[(i1..in), (j1..jn)] = T1[1, i1, j1, a] T2[a, i2, j2, b] .. Tn[z, in, jn, 1]
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor


def composed(cores: Sequence[Tensor], entry: Any) -> Tensor:
    """The weight of its cores, in their dtype.

    Args:
        cores: T1 to Tn.
        entry: The plan's; of its spec the shape of the weight, and whether it is transposed.
    """
    letters = iter(ascii_letters)
    bonds = [next(letters) for _ in range(len(cores) + 1)]
    out = [next(letters) for _ in cores]
    into = [next(letters) for _ in cores]
    terms = [bonds[k] + out[k] + into[k] + bonds[k + 1] for k in range(len(cores))]
    result = bonds[0] + "".join(out) + "".join(into) + bonds[-1]
    chain = torch.einsum(f"{','.join(terms)}->{result}", *cores)
    rows, columns = (prod(core.shape[axis] for core in cores) for axis in (1, 2))
    matrix = chain.reshape(rows, columns)
    return (matrix.T if entry.spec.transposed else matrix).reshape(entry.spec.shape)
