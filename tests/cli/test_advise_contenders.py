"""`opdf-compile advise --contenders`, from a recipe to the lines to paste."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_ruling import ruling, standing

from opdf_compile.cli import main
from opdf_compile.distill.advise import Ruling
from opdf_compile.distill.advise.contest.ruling import Rounded

RECIPE = """\
[student]
model = "tiny.py:student"

[data]
source = "rows.npz"
batch = 32
labels = "labels"

[[loss]]
kind = "task"
of = "mse"

[plan]
cores = 3

[optimizer]
name = "SGD"
lr = 0.03

[training]
steps = 40
device = "cpu"
metric = "mse"
"""
MODEL = """\
import torch

def student():
    layers = torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)
    return torch.nn.Sequential(*layers), (torch.zeros(2, 64),)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 64)).astype(np.float32)
    target = rng.normal(size=(64, 1)).astype(np.float32) / 8
    np.savez(tmp_path / "rows.npz", x=x, labels=np.tanh(x @ target))
    (tmp_path / "tiny.py").write_text(MODEL)
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    return file


@pytest.mark.slow
def test_contenders_race_and_the_advice_is_printed_and_written(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real clocks, a parametrization and an optimizer together, int8, and a plot."""
    target, plot = tmp_path / "a.json", tmp_path / "a.svg"
    names = "plain,gains+muon,sgd@2x,recipe"
    options = ["--contenders", names, "--after", "int8", "--budget", "90", "--pairs", "4"]
    assert main(["advise", str(recipe), *options, "--json", str(target), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    for part in ("Each at its best setting", "Gain over plain: mse", "After int8: mse", "lr = "):
        assert part in printed
    written = json.loads(target.read_text())
    assert written["schema"] == "opdf-advise/1"
    assert written["recommendation"] in printed
    found = {contender["name"]: contender for contender in written["contenders"]}
    assert list(found) == ["gains+muon", "sgd@2x", "recipe"]
    assert found["gains+muon"]["optimizer"]["name"] == "MuonAdamW"
    assert found["sgd@2x"]["equal_steps"]["plain_steps"] == 2 * written["run"]["plain_steps"]
    for contender in found.values():
        assert len(contender["int8"]["after"]) == len(written["plain"]["scores"])
    assert b"<svg" in plot.read_bytes()


def raced() -> Ruling:
    """What a contest could have found, with names as long as they get."""
    plain = [0.80, 0.81, 0.79, 0.80]
    edge = standing(
        "mpo(cores=4)+muon@1.5x", [0.9, 0.8, None, 0.7], {"steps": plain, "time": plain}
    )
    edge = replace(edge, side=replace(edge.side, at_edge=True), int8=Rounded((0.9,), (0.7,)))
    other = standing("gains", [0.9, 0.92, 0.91, 0.9], {"steps": plain, "time": plain})
    return ruling(plain, plain, edge, other, plain_int8=Rounded((0.8,), (0.8,)))


def test_tables_fit_a_narrow_terminal_and_options_arrive(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The race itself is left out: what is printed and written of it."""
    given: dict[str, Any] = {}

    def race(_job: Any, names: str, **options: Any) -> Ruling:
        given.update(options, names=names)
        return raced()

    monkeypatch.setattr("opdf_compile.distill.advise.referee", race)
    monkeypatch.setenv("COLUMNS", "100")
    plot, written = tmp_path / "a.png", tmp_path / "a.json"
    options = ["--contenders", "gains,mpo+muon", "--equal", "steps", "--after", "int8"]
    options += ["--budget", "120", "--pairs", "40", "--plot", str(plot), "--json", str(written)]
    assert main(["advise", str(recipe), *options]) == 0
    assert (given["names"], given["equal"], given["after"]) == ("gains,mpo+muon", "steps", "int8")
    assert (given["budget_seconds"], given["most_pairs"]) == (120.0, 40)
    printed = capsys.readouterr().out
    tables = printed[: printed.index("Time:")].splitlines()
    assert max(map(len, tables)) <= 100 and "…" not in printed
    for part in ("2e-05*", "1 won, 3 lost", "mpo(cores=4)+muon@1.5x", "neither", "Wrote"):
        assert part in printed
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(written.read_text())["recipe"] == str(recipe)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--contenders", "gain"], "contender 'gain' is not known (did you mean 'gains'?)"),
        (["--contenders", "plain"], "wanted at least one beside plain"),
        (["--equal", "time"], "--equal time is about contenders and none are named"),
        (["--after", "int8"], "--after int8 is about contenders and none are named"),
        (["--contenders", "sgd"], "is the recipe's own optimizer SGD"),
        (["--contenders", "do_conv"], "the contender do_conv: "),
        (["--contenders", "gains", "--budget", "0.6"], "too little time"),
    ],
)
def test_what_cannot_be_raced_is_refused_with_a_sentence(
    recipe: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert main(["advise", str(recipe), *options]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--equal", "money"), ("--after", "int4")])
def test_words_that_are_none_of_the_choices_are_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert main(["advise", str(recipe), "--contenders", "gains", option, value]) == 2
    assert f"'{value}' is not" in capsys.readouterr().err
