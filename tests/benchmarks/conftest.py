"""What a benchmark registers is gone with its test."""

from __future__ import annotations

import pytest

from opdf_compile.parametrizations import registry


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark registers a parametrization of its own, which other tests must not see."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
