"""Modes: how the two dimensions of a matrix are split into factors, one pair per core.

With out modes i_1..i_n and in modes j_1..j_n the bond after core k is
d_k = min(i_1 j_1 .. i_k j_k, i_{k+1} j_{k+1} .. i_n j_n)   (arXiv 2411.06448, eq. 3).

Two families are built here.

chain     out [a, 1, .., 1, b] and in [c, 1, .., 1, d], the paper's shapes. Every bond is
          D = min(ac, bd), and every core adds D^2 parameters.
balanced  both dimensions split into n factors as equal as possible. The bond is largest in the
          middle and the outer cores are small.

The bond decides how much is added, and a careless split wastes it: a prime size p splits only into
p and 1, and two primes both at the left leave bd = 1. The rule of the chain family is therefore: of
the splits below take the first whose bond is at least half of the largest bond of any split.

1. The paper's: each dimension at its most square divisors, the larger factor first.
2. The same with the column factors swapped.
3. The split with the largest bond; of equal ones the first of `chain_splits`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from opdf_compile.errors import InputError

Modes = tuple[int, ...]

MAX_CORES = 64


class Split(NamedTuple):
    """One way to split a matrix in two: out modes (a, b), in modes (c, d)."""

    a: int
    b: int
    c: int
    d: int

    @property
    def bond(self) -> int:
        """D = min(ac, bd), the full bond of every chain with these outer modes."""
        return min(self.a * self.c, self.b * self.d)

    def modes(self, cores: int) -> tuple[Modes, Modes]:
        """The chain of `cores` cores: ones between the outer modes."""
        ones = (1,) * (cores - 2)
        return (self.a, *ones, self.b), (self.c, *ones, self.d)


@lru_cache(maxsize=1024)
def divisors(n: int) -> tuple[int, ...]:
    """All divisors of `n`, ascending.

    Example:
        >>> divisors(12)
        (1, 2, 3, 4, 6, 12)
    """
    _require_size("size", n)
    low = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    high = [n // d for d in reversed(low) if d * d != n]
    return (*low, *high)


@lru_cache(maxsize=1024)
def prime_factors(n: int) -> tuple[int, ...]:
    """The prime factors of `n` with their multiplicity, ascending; () for 1."""
    _require_size("size", n)
    factors = []
    p = 2
    while p * p <= n:
        while n % p == 0:
            factors.append(p)
            n //= p
        p += 1
    if n > 1:
        factors.append(n)
    return tuple(factors)


@lru_cache(maxsize=1024)
def chain_splits(rows: int, cols: int, *, kernel: int = 1) -> tuple[Split, ...]:
    """Every pair of divisor splits, ordered by bond; of equal bonds the most square comes first.

    Args:
        rows: Out features.
        cols: In features times `kernel`.
        kernel: Product of the kernel sizes, kept whole in the last in mode.

    Raises:
        InputError: A size is not a positive integer, or `cols` is no multiple of `kernel`.
    """
    channels = _channels(rows, cols, kernel)
    splits = [
        Split(a, rows // a, c, channels // c * kernel)
        for a in divisors(rows)
        for c in divisors(channels)
    ]
    return tuple(sorted(splits, key=_split_order))


def chain_modes(rows: int, cols: int, cores: int, *, kernel: int = 1) -> tuple[Modes, Modes]:
    """Modes of the chain family, the paper's shapes.

    Args:
        rows: Out features.
        cols: In features times `kernel`, channel-major as in a convolution's weight.
        cores: Number of cores, 2 to 64.
        kernel: Product of the kernel sizes, kept whole in the last in mode.

    Returns:
        (out_modes, in_modes), each of length `cores`.

    Raises:
        InputError: A size is not a positive integer, or `cols` is no multiple of `kernel`.

    Example:
        >>> chain_modes(3072, 768, 5)
        ((64, 1, 1, 1, 48), (32, 1, 1, 1, 24))

    Source: arXiv 2411.06448, its shapes for BERT; the rule for wasted bonds is ours (see above).
    """
    _require_cores(cores)
    return _chain_split(rows, cols, kernel).modes(cores)


def balanced_modes(rows: int, cols: int, cores: int, *, kernel: int = 1) -> tuple[Modes, Modes]:
    """Modes of the balanced family: factors as equal as the primes allow, ones for what is missing.

    The larger factors come first in both dimensions; the column factors are reversed where that
    more than doubles the largest bond. Arguments, result and errors are those of `chain_modes`.

    Example:
        >>> balanced_modes(768, 768, 3)
        ((12, 8, 8), (12, 8, 8))
    """
    _require_cores(cores)
    channels = _channels(rows, cols, kernel)
    out_modes = tuple(sorted(_spread(rows, [1] * cores), reverse=True))
    *first, last = _spread(channels, [1] * (cores - 1) + [kernel])
    if kernel == 1:
        *first, last = sorted((*first, last), reverse=True)
    in_modes = (*sorted(first, reverse=True), last)
    reversed_modes = (*in_modes[:-1][::-1], last) if kernel > 1 else in_modes[::-1]
    wasted = 2 * max(full_bonds(out_modes, in_modes)) < max(full_bonds(out_modes, reversed_modes))
    return out_modes, reversed_modes if wasted else in_modes


def full_bonds(out_modes: Modes, in_modes: Modes) -> Modes:
    """The n + 1 full bonds, from d_0 = 1 to d_n = 1 (eq. 3: nothing is truncated)."""
    left, right = 1, math.prod(out_modes) * math.prod(in_modes)
    bonds = [1]
    for i, j in zip(out_modes, in_modes, strict=True):
        left, right = left * i * j, right // (i * j)
        bonds.append(min(left, right))
    return tuple(bonds)


@lru_cache(maxsize=1024)
def _chain_split(rows: int, cols: int, kernel: int) -> Split:
    splits = chain_splits(rows, cols, kernel=kernel)
    a, c = _square_divisor(rows, 1), _square_divisor(cols // kernel, kernel)
    paper = Split(a, rows // a, c, cols // c)
    flipped = Split(a, rows // a, paper.d, paper.c)
    # A kernel must stay whole in the last mode, which only some swapped factors allow.
    preferred = [paper] if flipped.d % kernel else [paper, flipped]
    best = splits[-1].bond
    largest = next(split for split in splits if split.bond == best)
    return next((split for split in preferred if 2 * split.bond >= best), largest)


def _square_divisor(size: int, kernel: int) -> int:
    """The divisor c of `size` for which c and (size / c) * kernel are closest, the larger first."""
    return min(divisors(size)[::-1], key=lambda c: _unevenness(c, size // c * kernel))


def _unevenness(left: int, right: int) -> float:
    return max(left, right) / min(left, right)


def _split_order(split: Split) -> tuple[int, float, bool, bool]:
    skew = _unevenness(split.a, split.b) * _unevenness(split.c, split.d)
    return split.bond, skew, split.a < split.b, split.c < split.d


def _spread(size: int, factors: list[int]) -> list[int]:
    """`factors` with each prime of `size`, the largest first, given to the smallest factor."""
    factors = list(factors)
    for prime in reversed(prime_factors(size)):
        factors[factors.index(min(factors))] *= prime
    return factors


def _channels(rows: int, cols: int, kernel: int) -> int:
    for name, size in (("rows", rows), ("columns", cols), ("kernel", kernel)):
        _require_size(name, size)
    if cols % kernel:
        raise InputError(f"{cols} columns are no multiple of the kernel size {kernel}")
    return cols // kernel


def _require_size(name: str, size: object) -> None:
    if type(size) is not int or size < 1:
        raise InputError(f"{name} must be a positive integer, found {size!r}")


def _require_cores(cores: object) -> None:
    if type(cores) is not int or not 2 <= cores <= MAX_CORES:
        raise InputError(
            f"the number of cores must be an integer from 2 to {MAX_CORES}, found {cores!r}"
        )
