"""What an extra requires, as pip takes it."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from opdf_compile.extras import requirements_of

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Each test asks anew."""
    requirements_of.cache_clear()


@pytest.mark.parametrize("extra", EXTRAS)
def test_it_is_what_the_package_says(extra: str) -> None:
    """No more and no less, each quoted, so that a shell does not read > as a file."""
    assert sorted(requirements_of(extra).split()) == sorted(f"'{one}'" for one in EXTRAS[extra])


def test_markers_of_their_own_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [
        "a>=1",
        "b>=2; extra == 'x'",
        'c; python_version < "3" and extra == "x"',
        "d; extra == 'y'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda _: told)
    assert requirements_of("x") == "'b>=2' c"


def test_a_source_tree_names_its_own_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: str) -> list[str]:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", gone)
    assert requirements_of("gpu") == "'.[gpu]'"


def test_no_remedy_names_the_package_as_one_of_an_index() -> None:
    """pip would not find it there."""
    sources = (ROOT / "opdf_compile").rglob("*.py")
    assert [p.name for p in sources if "opdf-compile[" in p.read_text(encoding="utf-8")] == []
