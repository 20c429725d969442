"""The benchmarks' own modules, importable as the scripts see them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from opdf_compile.parametrizations import registry

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark registers a parametrization of its own, which other tests must not see."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
