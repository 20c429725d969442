"""plan --parametrization: the name reaches the plan, and an unknown one is told before any work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from opdf_compile.parametrizations import registered_names

Run = Callable[[str], int]


def test_the_name_reaches_the_plan(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.json"
    assert run(f"plan student.py:build -o {out} --parametrization svd") == 0
    entries = json.loads(out.read_text())["entries"]
    assert {entry["parametrization"] for entry in entries} == {"svd"}
    assert " svd " in capsys.readouterr().out


def test_options_stand_in_brackets(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    assert run(f"plan student.py:build -o {out} --parametrization wide(expansion=2)") == 0
    written = json.loads(out.read_text())
    assert {entry["spec"]["expansion"] for entry in written["entries"]} == {2}
    assert written["request"] == {"cores": 2, "parametrization": "wide(expansion=2)"}


def test_an_unknown_option_is_told_first(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "wide(expnasion=2)"
    assert run(f"plan no_such_file.py:build -o {tmp_path}/p.json --parametrization {asked}") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "wide has no option 'expnasion' (did you mean 'expansion'?); it has expansion" in error


def test_an_unknown_name_is_told_first(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"plan no_such_file.py:build -o {tmp_path}/p.json --parametrization tucker") == 2
    error = capsys.readouterr().err
    known = (
        "do_conv, gains, ham, hyperball, md, mpo, orepa, powerprop, repopt, shared, spectral, svd, "
        "wide"
    )
    assert f"'tucker' is not known; use one of: {known}" in error
    assert not list(tmp_path.iterdir())


def test_the_help_names_the_whole_registry(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert run("plan --help") == 0
    (line,) = re.findall(r"mpo, or another of the registry: (.*?)\.", capsys.readouterr().out)
    assert line.split(", ") == [name for name in registered_names() if name != "mpo"]
