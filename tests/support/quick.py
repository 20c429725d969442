"""Which cases of a table run in every run; the others are left to `make test-all`."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def quick(cases: Iterable[Any], kept: Container[Any]) -> list[Any]:
    """The cases in their order, all but the kept ones marked as slow."""
    return [case if case in kept else pytest.param(case, marks=pytest.mark.slow) for case in cases]
