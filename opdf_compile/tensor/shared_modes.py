"""Modes that matrices of different sizes share: the outer ones alike, the central core the rest.

    out  [a, 1, .., I/(ab), .., 1, b]      in  [c, 1, .., J/(cd), .., 1, d]

With p = ac and q = bd the outer bonds are d_1 = p and d_{n-1} = q on both sides as long as p^2 and
q^2 are at most IJ of each, because d_1 = min(p, IJ/p). Then every auxiliary core has one shape,
whatever the matrices' sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import gcd

from opdf_compile.errors import InputError
from opdf_compile.tensor.modes import Modes, Split, divisors

# Rows, columns.
MatrixSize = tuple[int, int]


def joint_modes(
    sizes: Sequence[MatrixSize], cores: int, *, kernel: int = 1
) -> list[tuple[Modes, Modes]]:
    """The modes of each matrix, the same but for the central core's.

    Of all outer modes the ones with the largest smaller bond are taken, then with the largest
    other, then the most square.

    Args:
        sizes: (rows, columns) of each matrix; columns are channels times `kernel`.
        cores: Number of cores, 2 to 64.
        kernel: Product of the kernel sizes, kept whole in the last in mode.

    Returns:
        (out_modes, in_modes) of each matrix.

    Raises:
        InputError: The sizes have no factor in common that gives a bond above 1.

    Example:
        >>> joint_modes([(384, 384), (768, 768)], 3)
        [((24, 1, 16), (16, 1, 24)), ((24, 2, 16), (16, 2, 24))]
    """
    outer = _outer(tuple(sizes), kernel, cores == 2)
    if outer is None:
        described = " and ".join(f"{rows} x {cols}" for rows, cols in sizes)
        raise InputError(
            f"matrices of {described} have no outer modes in common (kernel {kernel}): their sizes "
            "share no factor that leaves a bond above 1"
        )
    return [_filled(size, outer, cores) for size in sizes]


def _filled(size: MatrixSize, outer: Split, cores: int) -> tuple[Modes, Modes]:
    centre = cores // 2
    modes = []
    for whole, first, last in ((size[0], outer.a, outer.b), (size[1], outer.c, outer.d)):
        made = [1] * cores
        made[0], made[-1] = first, last
        # With two cores the last one is the central core.
        made[centre] = whole // first if cores == 2 else whole // (first * last)
        modes.append(tuple(made))
    return modes[0], modes[1]


@lru_cache(maxsize=1024)
def _outer(sizes: tuple[MatrixSize, ...], kernel: int, one_sided: bool) -> Split | None:
    """The best outer modes; `one_sided` where there is a left one only."""
    rows = gcd(*(size[0] for size in sizes))
    cols = gcd(*(size[1] for size in sizes))
    most = min(size[0] * size[1] for size in sizes)
    if cols % kernel:
        return None
    found = _one_sided if one_sided else _two_sided
    splits = [split for split in found(rows, cols // kernel, kernel) if _fits(split, most)]
    return max(splits, key=_merit, default=None)


def _one_sided(rows: int, channels: int, kernel: int) -> Iterator[Split]:
    """The right outer core is the central one: its modes are left at 1."""
    for a in divisors(rows):
        for c in divisors(channels):
            yield Split(a, 1, c, 1)


def _two_sided(rows: int, channels: int, kernel: int) -> Iterator[Split]:
    for a in divisors(rows):
        for c in divisors(channels):
            for b in divisors(rows // a):
                for d in divisors(channels // c):
                    yield Split(a, b, c, d * kernel)


def _fits(split: Split, most: int) -> bool:
    left, right = split.a * split.c, split.b * split.d
    return left > 1 and (right > 1 or split.b == split.d == 1) and max(left, right) ** 2 <= most


def _merit(split: Split) -> tuple[int, int, float, bool, bool]:
    left, right = split.a * split.c, split.b * split.d
    sides = ((split.a, split.c),) if split.b == split.d == 1 else (split[:2], split[2:])
    skew = 1.0
    for one, other in sides:
        skew *= max(one, other) / min(one, other)
    return min(left, right), max(left, right), -skew, split.a >= split.b, split.c >= split.d
