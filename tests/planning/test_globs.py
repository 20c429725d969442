"""Globs: what they name, and that naming every weight does not compile a pattern for each."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdf_compile.errors import PlanError
from opdf_compile.graph.rows import Match
from opdf_compile.planning.globs import Globs


def weight(key: str, *aliases: str) -> Match:
    return Match(key, (4, 4), "float32", aliases=aliases)


names = st.text(alphabet="ab.0[]*?!-", min_size=1, max_size=6)


@given(globs=st.lists(names, max_size=4), found=names, alias=names)
def test_names_what_fnmatch_names(globs: list[str], found: str, alias: str) -> None:
    wanted = any(fnmatchcase(name, glob) for glob in globs for name in (found, alias))
    assert Globs(globs).name(weight(found, alias)) == wanted


def test_a_bare_string_is_one_glob() -> None:
    assert Globs("a.weight").name(weight("a.weight"))
    assert not Globs("a.weight").name(weight("a"))
    assert not Globs(())


def test_a_glob_that_names_nothing_is_refused() -> None:
    weights = [weight("head.weight", "table.weight"), weight("body.weight")]
    Globs(["table.*", "body.weight"]).require_used(weights)
    for glob in ("neck.bias", "chairs.*"):
        with pytest.raises(PlanError, match=r"names none of the 3 weights \(the first is 'head.w"):
            Globs(["body.*", glob]).require_used(weights)


def test_a_thousand_names_compile_no_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [weight(f"{index}.weight") for index in range(1000)]
    compiled: list[object] = []
    original = re.compile
    monkeypatch.setattr(re, "compile", lambda *a, **k: compiled.append(a) or original(*a, **k))
    globs = Globs([found.key for found in weights])
    globs.require_used(weights)
    assert all(map(globs.name, weights))
    assert not compiled
    assert not globs.name(weight("1000.weight"))


@pytest.mark.parametrize("written", ["head", "head.wieght", "HEAD.weight"])
def test_a_misspelt_name_gets_the_one_that_was_meant(written: str) -> None:
    weights = [weight("body.weight"), weight("head.weight")]
    with pytest.raises(PlanError, match=r"2 weights \(did you mean 'head\.weight'\?\)"):
        Globs([written]).require_used(weights)
