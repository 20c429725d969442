"""Outer modes that two matrices share."""

from __future__ import annotations

from math import prod

import pytest
from quick import covering

from opdf_compile.errors import InputError
from opdf_compile.tensor.chain import Chain
from opdf_compile.tensor.shared_modes import MatrixSize, joint_modes

SIZES: list[list[MatrixSize]] = [
    [(384, 384), (768, 768)],
    [(1536, 384), (3072, 768)],
    [(312, 312), (768, 768)],
    [(10, 64), (10, 128)],
    [(768, 768), (384, 384)],
]


@pytest.mark.parametrize(("sizes", "cores"), covering(SIZES, [2, 3, 4, 5]))
def test_all_auxiliary_cores_have_equal_shapes(sizes: list[MatrixSize], cores: int) -> None:
    one, other = (Chain(*modes) for modes in joint_modes(sizes, cores))
    assert [(c.rows, c.cols) for c in (one, other)] == sizes
    differ = [k for k in range(cores) if one.core_shapes[k] != other.core_shapes[k]]
    assert differ in ([], [one.central])
    assert min(one.bonds[1:-1]) > 1 and one.added > 0


def test_no_larger_bond_is_possible() -> None:
    """Of 12 x 12 and 24 x 24 by trying every split."""
    (modes, _) = joint_modes([(12, 12), (24, 24)], 3)
    best = 0
    for a in range(1, 13):
        for b in (b for b in range(1, 13) if 12 % (a * b) == 0):
            for c in range(1, 13):
                for d in (d for d in range(1, 13) if 12 % (c * d) == 0):
                    if max(a * c, b * d) ** 2 <= 144:
                        best = max(best, min(a * c, b * d))
    bonds = Chain(*modes).bonds
    assert min(bonds[1:-1]) == best == 12


def test_a_kernel_stays_whole_in_the_last_mode() -> None:
    one, other = joint_modes([(128, 64 * 9), (256, 128 * 9)], 3, kernel=9)
    assert one[1][-1] % 9 == 0 and one[1][-1] == other[1][-1]
    assert prod(other[1]) == 128 * 9


def test_sizes_without_a_common_factor_are_told() -> None:
    with pytest.raises(InputError, match=r"7 x 7 and 11 x 11 .* no outer modes in common"):
        joint_modes([(7, 7), (11, 11)], 3)
    with pytest.raises(InputError, match=r"kernel 9"):
        joint_modes([(8, 8), (16, 16)], 3, kernel=9)
