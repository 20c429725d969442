"""Mode families: products, the paper's shapes, and bonds that are not wasted."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdf_compile.errors import InputError
from opdf_compile.tensor.modes import (
    balanced_modes,
    chain_modes,
    chain_splits,
    divisors,
    full_bonds,
    prime_factors,
)

FAMILIES = (chain_modes, balanced_modes)
sizes = st.integers(1, 4000)


@pytest.mark.parametrize(
    ("rows", "cols", "cores", "kernel", "out_modes", "in_modes"),
    [
        (3072, 768, 5, 1, (64, 1, 1, 1, 48), (32, 1, 1, 1, 24)),
        (768, 3072, 3, 1, (32, 1, 24), (64, 1, 48)),
        (768, 768, 2, 1, (32, 24), (32, 24)),
        # The paper's orientation would give bond 1; the columns are swapped.
        (7, 11, 3, 1, (7, 1, 1), (1, 1, 11)),
        (97, 97, 2, 1, (97, 1), (1, 97)),
        (7, 8, 2, 1, (7, 1), (2, 4)),
        # Neither orientation reaches half of the best bond: 144 and 192 against 4608.
        (30522, 768, 2, 1, (5087, 6), (1, 768)),
        # A kernel stays whole in the last in mode.
        (64, 64 * 9, 3, 9, (8, 1, 8), (32, 1, 2 * 9)),
        (64, 3 * 49, 2, 49, (32, 2), (3, 49)),
        (32, 9, 2, 9, (8, 4), (1, 9)),
        (1, 1, 2, 1, (1, 1), (1, 1)),
        (1, 12, 3, 1, (1, 1, 1), (4, 1, 3)),
        (12, 1, 2, 1, (4, 3), (1, 1)),
    ],
)
def test_chain_family(
    rows: int,
    cols: int,
    cores: int,
    kernel: int,
    out_modes: tuple[int, ...],
    in_modes: tuple[int, ...],
) -> None:
    assert chain_modes(rows, cols, cores, kernel=kernel) == (out_modes, in_modes)


@pytest.mark.parametrize(
    ("rows", "cols", "cores", "kernel", "out_modes", "in_modes"),
    [
        (768, 768, 3, 1, (12, 8, 8), (12, 8, 8)),
        (768, 768, 5, 1, (4, 4, 4, 4, 3), (4, 4, 4, 4, 3)),
        (64, 64 * 9, 3, 9, (4, 4, 4), (8, 8, 9)),
        (7, 11, 3, 1, (7, 1, 1), (1, 1, 11)),
        (1, 1, 4, 1, (1, 1, 1, 1), (1, 1, 1, 1)),
    ],
)
def test_balanced_family(
    rows: int,
    cols: int,
    cores: int,
    kernel: int,
    out_modes: tuple[int, ...],
    in_modes: tuple[int, ...],
) -> None:
    assert balanced_modes(rows, cols, cores, kernel=kernel) == (out_modes, in_modes)


@given(sizes, sizes, st.integers(2, 12), st.sampled_from([1, 2, 9, 25]))
def test_modes_multiply_to_the_sizes_and_keep_the_kernel_whole(
    rows: int, channels: int, cores: int, kernel: int
) -> None:
    for family in FAMILIES:
        out_modes, in_modes = family(rows, channels * kernel, cores, kernel=kernel)
        assert len(out_modes) == len(in_modes) == cores
        assert math.prod(out_modes) == rows
        assert math.prod(in_modes) == channels * kernel
        assert in_modes[-1] % kernel == 0


@given(sizes, sizes, st.sampled_from([1, 9]))
def test_the_chain_family_reaches_half_of_the_best_bond(
    rows: int, channels: int, kernel: int
) -> None:
    cols = channels * kernel
    best = max(
        min(a * c, rows // a * (cols // c))
        for a in range(1, rows + 1)
        if rows % a == 0
        for c in divisors(channels)
    )
    assert 2 * max(full_bonds(*chain_modes(rows, cols, 3, kernel=kernel))) >= best


def test_chain_splits_are_all_pairs_ordered_by_bond() -> None:
    splits = chain_splits(12, 18, kernel=9)
    assert len(set(splits)) == len(divisors(12)) * len(divisors(2))
    assert all(s.a * s.b == 12 and s.c * s.d == 18 and s.d % 9 == 0 for s in splits)
    assert [s.bond for s in splits] == sorted(min(s.a * s.c, s.b * s.d) for s in splits)


@given(st.integers(1, 5000))
def test_divisors_and_primes_against_trial_division(n: int) -> None:
    assert divisors(n) == tuple(d for d in range(1, n + 1) if n % d == 0)
    assert math.prod(prime_factors(n)) == n
    assert all(divisors(p) == (1, p) for p in prime_factors(n))


def test_full_bonds_are_the_smaller_side() -> None:
    assert full_bonds((64, 1, 1, 1, 48), (32, 1, 1, 1, 24)) == (1, 1152, 1152, 1152, 1152, 1)
    assert full_bonds((2, 3, 2), (2, 2, 5)) == (1, 4, 10, 1)


@pytest.mark.parametrize(
    ("arguments", "kernel", "sentence"),
    [
        ((0, 4, 2), 1, "rows must be a positive integer, found 0"),
        ((4, True, 2), 1, "columns must be a positive integer, found True"),
        ((4, 4, 1), 1, "number of cores must be an integer from 2 to 64, found 1"),
        ((4, 4, 65), 1, "found 65"),
        ((4, 4, 2.0), 1, "found 2.0"),
        ((4, 10, 2), 9, "10 columns are no multiple of the kernel size 9"),
    ],
)
def test_wrong_sizes_are_refused(arguments: tuple[int, ...], kernel: int, sentence: str) -> None:
    for family in FAMILIES:
        with pytest.raises(InputError, match=sentence):
            family(*arguments, kernel=kernel)
