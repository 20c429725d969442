"""The registry: names are unique, and an unknown one is refused with those that are known."""

from __future__ import annotations

import re

import pytest

from opdf_compile.cli import main
from opdf_compile.errors import InternalError, PlanError
from opdf_compile.parametrizations import registry
from opdf_compile.parametrizations.mpo import Mpo


def test_the_mpo_is_there() -> None:
    assert "mpo" in registry.registered_names()
    assert isinstance(registry.registered("mpo"), Mpo)


def test_the_help_of_plan_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--help"]) == 0
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert words.issuperset(registry.registered_names())
    assert "tucker" not in words, "the control"


def test_a_new_parametrization_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {"mpo": registry.registered("mpo")})
    other = Mpo(name="other")
    registry.register(other)
    registry.register(other)
    assert registry.registered("other") is other
    assert registry.registered_names() == ("mpo", "other")


def test_a_name_is_taken_once() -> None:
    with pytest.raises(InternalError, match="name 'mpo' is taken by Mpo"):
        registry.register(Mpo())


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(PlanError, match="'tucker' is not known; use one of: delta, do_conv, gains"):
        registry.registered("tucker")
