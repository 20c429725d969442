"""`opdf-compile advise`, from a recipe to the lines to paste."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opdf_compile.cli import main
from opdf_compile.distill.advise import Advice
from opdf_compile.distill.advise.advice import Side, Tried
from opdf_compile.distill.advise.significance import paired

RECIPE = """\
[student]
model = "tiny.py:student"

[data]
source = "rows.npz"
batch = 16
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
steps = 30
device = "cpu"
metric = "mse"
"""
# A step that takes longer than it takes to set a run up, on any machine: with shorter ones a busy
# machine cannot give both sides equal time in 30 steps, which `advise` says and refuses.
MODEL = """\
import time

import torch

class Slow(torch.nn.Linear):
    def forward(self, x):
        time.sleep(0.005)
        return super().forward(x)

def student():
    return Slow(64, 1, bias=False), (torch.zeros(2, 64),)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 64)).astype(np.float32)
    target = np.linalg.qr(rng.normal(size=(8, 8)))[0].reshape(64, 1).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, labels=x @ target)
    (tmp_path / "tiny.py").write_text(MODEL)
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    return file


@pytest.mark.slow
def test_advice_is_printed_and_written(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", str(recipe), "--budget", "60", "--json", str(tmp_path / "a.json")]) == 0
    printed = capsys.readouterr().out
    for part in ("Tuning, plain:", "Equal time for both", "Final comparison: mse", "lr = "):
        assert part in printed
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["schema"] == "opdf-advise/1"
    assert written["recommendation"] in printed
    assert written["budget_seconds"] == 60


def raced() -> Advice:
    """What a race could have found."""
    rows = [
        Tried(rung, "md", lr, 0.001, 1000, 1, None if lr == 0.3 else 0.9)
        for rung in (1, 2, 3)
        for lr in (0.03, 0.1, 0.3, 0.01)
    ]
    plain = Side(
        "plain",
        {"enabled": False},
        ("[alignment]",),
        0.1,
        0.0,
        at_edge=False,
        tried=tuple(replace(row, method="plain") for row in rows),
        tuning_runs=30,
        tuning_seconds=12.5,
        final_seconds=40.25,
        final_steps=1000,
        step_seconds=0.0012,
        setup_seconds=0.0,
        scores=(0.8, 0.81, 0.79, None),
    )
    over = replace(
        plain,
        method="the recipe's plan, aligned",
        lines={},
        without=(),
        tried=tuple(replace(row, method="the recipe's plan, aligned") for row in rows),
        scores=(0.9, 0.92, 0.91, 0.9),
    )
    found = paired([0.1, 0.11, 0.12])
    times = {
        "whole": 1000,
        "budget": 120.0,
        "seconds": 110.0,
        "spent": 5.0,
        "most_pairs": 30,
        "scored": 9,
    }
    return Advice(
        plain, over, found, (1000, 1001, 1002, 1003), "accuracy", True, mixed=True, **times
    )


def test_every_table_fits_a_narrow_terminal_and_the_plot_is_written(
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The race itself is left out: what is printed and written of it."""
    given: dict[str, Any] = {}

    def race(_job: Any, **options: Any) -> Advice:
        given.update(options)
        return raced()

    monkeypatch.setattr("opdf_compile.distill.advise.advise", race)
    monkeypatch.setenv("COLUMNS", "80")
    plot, written = tmp_path / "a.png", tmp_path / "a.json"
    options = ["--budget", "120", "--pairs", "40", "--plot", str(plot), "--json", str(written)]
    assert main(["advise", str(recipe), *options]) == 0
    assert (given["budget_seconds"], given["most_pairs"]) == (120.0, 40)
    assert 0 < given["spent_seconds"] < 120
    printed = capsys.readouterr().out
    tables = printed[: printed.index("Time:")].splitlines()
    assert max(map(len, tables)) <= 80
    assert "…" not in printed
    for part in ("and 1 more", "the recipe's plan, aligned", "diverged", "none", "Wrote"):
        assert part in printed
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(written.read_text())["loading_seconds"] == 5.0


@pytest.mark.parametrize("name", ["a.txt", "a"])
def test_plot_of_another_kind_is_refused_before_the_race(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["advise", str(recipe), "--plot", str(tmp_path / name)]) == 2
    assert f"{name} is no .png, .svg, .pdf file; give such a name" in capsys.readouterr().err


def test_plot_without_a_folder_is_refused_before_the_race(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", str(recipe), "--plot", str(tmp_path / "no" / "a.png")]) == 2
    assert "does not exist; create it" in capsys.readouterr().err


def test_one_pair_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", str(recipe), "--pairs", "1"]) == 2
    assert "wanted at least 2 for an interval" in capsys.readouterr().err


def test_budget_that_loading_uses_up_is_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", str(recipe), "--budget", "0.0001"]) == 2
    assert "too little time: loading what" in capsys.readouterr().err


def test_budget_without_meaning_is_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", str(recipe), "--budget", "-3"]) == 2
    assert "wanted a positive number of seconds" in capsys.readouterr().err
