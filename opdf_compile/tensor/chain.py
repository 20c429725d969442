"""A chain: the modes of one matrix product operator, and all that follows from them.

W[(i1..in),(j1..jn)] = T1[i1,j1] T2[i2,j2] .. Tn[in,jn], with T_k of shape
(d_{k-1}, i_k, j_k, d_k) and the full bonds d_k of `modes.full_bonds`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from opdf_compile.errors import InputError
from opdf_compile.tensor.modes import MAX_CORES, Modes, full_bonds

CoreShape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Chain:
    """The modes of an MPO with full bonds.

    Attributes:
        out_modes: i_1..i_n, whose product is the number of rows.
        in_modes: j_1..j_n, whose product is the number of columns.

    Raises:
        InputError: The modes are not two equally long tuples of 2 to 64 positive integers.
    """

    out_modes: Modes
    in_modes: Modes

    def __post_init__(self) -> None:
        """Refuse modes that are no chain, with the fact found."""
        for name, modes in (("out_modes", self.out_modes), ("in_modes", self.in_modes)):
            # bool is a subclass of int, so that isinstance would let True pass as a mode.
            if type(modes) is not tuple or any(type(m) is not int or m < 1 for m in modes):
                raise InputError(f"{name} must be a tuple of positive integers, found {modes!r}")
        if len(self.out_modes) != len(self.in_modes):
            found = f"{len(self.out_modes)} out_modes and {len(self.in_modes)} in_modes"
            raise InputError(f"each core needs one mode of each kind, found {found}")
        if not 2 <= len(self.out_modes) <= MAX_CORES:
            raise InputError(f"2 to {MAX_CORES} cores are wanted, found {len(self.out_modes)}")

    @property
    def rows(self) -> int:
        """Rows of the matrix: the product of the out modes."""
        return math.prod(self.out_modes)

    @property
    def cols(self) -> int:
        """Columns of the matrix: the product of the in modes."""
        return math.prod(self.in_modes)

    @property
    def cores(self) -> int:
        """Number of cores, n."""
        return len(self.out_modes)

    @property
    def central(self) -> int:
        """Place of the central core, n // 2 counted from 0; the others are auxiliary."""
        return self.cores // 2

    @property
    def products(self) -> Modes:
        """i_k j_k of every core."""
        return tuple(i * j for i, j in zip(self.out_modes, self.in_modes, strict=True))

    @cached_property
    def bonds(self) -> Modes:
        """d_0..d_n, full: d_k = min(modes left, modes right); the first and the last are 1."""
        return full_bonds(self.out_modes, self.in_modes)

    @property
    def core_shapes(self) -> tuple[CoreShape, ...]:
        """(d_{k-1}, i_k, j_k, d_k) of every core."""
        bonds = self.bonds
        return tuple(zip(bonds[:-1], self.out_modes, self.in_modes, bonds[1:], strict=True))

    @property
    def parameters(self) -> int:
        """Entries of all cores together."""
        return sum(math.prod(shape) for shape in self.core_shapes)

    @property
    def added(self) -> int:
        """N_add = sum_k i_k j_k d_{k-1} d_k - prod_k i_k j_k (arXiv 2411.06448, eq. 4)."""
        return self.parameters - self.rows * self.cols
