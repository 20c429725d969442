"""plan --parametrization: the name reaches the plan, and an unknown one is told before any work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from opdf_compile.parametrizations import branch_forms, registered_names

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


def test_rules_reach_the_plan_and_the_expanded_file(run: Run, tmp_path: Path) -> None:
    plan, out = tmp_path / "p.json", tmp_path / "o.safetensors"
    rules = "--rule conv.*=svd --rule head.*=none --rule *=wide(expansion=2)"
    assert run(f"plan student.py:build -o {plan} {rules}") == 0
    written = json.loads(plan.read_text())
    found = {entry["key"]: entry["parametrization"] for entry in written["entries"]}
    assert found == {"conv.weight": "svd", "hidden.weight": "wide"}
    assert list(written["request"]["rules"]) == ["conv.*", "head.*", "*"]
    assert run(f"expand student.py:build -o {out} {rules}") == 0
    with safe_open(out, framework="np") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    assert shapes["head.weight"] == [5, 24]
    assert shapes["hidden.weight_cores.0"] == [24, 64]


WRONG = {
    "plan no.py:m -o {tmp}/p.json --rule conv.*": "--rule 'conv.*' is no rule, wanted GLOB=NAME",
    "plan no.py:m -o {tmp}/p.json --rule =svd": "--rule '=svd' is no rule, wanted GLOB=NAME",
    "plan no.py:m -o {tmp}/p.json --rule conv.*=": "--rule 'conv.*=' is no rule, wanted GLOB=NAME",
    "plan no.py:m -o {tmp}/p.json --rule a=svd --rule a=none": "'a' twice, as 'svd' and 'none'",
    "plan no.py:m -o {tmp}/p.json --rule a=sdv": "the rule 'a' cannot be followed: parametri",
    "expand no.py:m -o {tmp}/o.pt2 --rule a=sdv": "the rule 'a' cannot be followed: parametri",
    "expand no.py:m -o {tmp}/o.pt2 --plan p.json --rule a=svd": "--plan p.json and --rule are",
    "plan student.py:build -o {tmp}/p.json --rule con.*=svd": "the glob 'con.*' names none of",
}


@pytest.mark.parametrize("line", WRONG)
def test_rules_that_are_none_are_told_first(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    assert run(line.format(tmp=tmp_path)) == 2
    assert WRONG[line] in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_is_told_first(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"plan no_such_file.py:build -o {tmp_path}/p.json --parametrization tucker") == 2
    error = capsys.readouterr().err
    known = (
        "delta, do_conv, gains, ham, hyperball, md, mpo, orepa, powerprop, repopt, shared, "
        "spectral, svd, wide"
    )
    assert f"'tucker' is not known; use one of: {known}" in error
    assert not list(tmp_path.iterdir())


def test_the_help_names_the_whole_registry(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert run("plan --help") == 0
    told = capsys.readouterr().out
    (line,) = re.findall(r"mpo, or another of the registry: (.*?)\.", told)
    assert line.split(", ") == [name for name in registered_names() if name != "mpo"]
    (line,) = re.findall(r"a convolution and its BatchNorm: (.*?)\.", told)
    assert line.split(", ") == list(branch_forms())
