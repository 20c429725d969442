"""Which cases of a table run in every run; the others are left to `make test-all`."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick(cases: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """The cases in their order, all but the kept ones marked as slow."""
    cases = list(cases)
    assert all(case in cases for case in kept), "a kept case is none of the cases"
    return [case if case in kept else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def covering(*axes: Iterable[Any]) -> list[Any]:
    """All combinations, marked as slow but for a diagonal, which has each value of each axis."""
    values = [list(axis) for axis in axes]
    longest = max(map(len, values))
    diagonal = {tuple(step % len(axis) for axis in values) for step in range(longest)}
    return [
        pytest.param(
            *(axis[k] for axis, k in zip(values, places, strict=True)),
            marks=() if places in diagonal else pytest.mark.slow,
        )
        for places in itertools.product(*(range(len(axis)) for axis in values))
    ]
