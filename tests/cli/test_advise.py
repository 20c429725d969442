"""`opdf-compile advise`, from a recipe to the lines to paste."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdf_compile.cli import main

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

[optimizer]
name = "SGD"
lr = 0.03

[training]
steps = 30
device = "cpu"
metric = "mse"
"""
MODEL = """\
import torch

def student():
    return torch.nn.Linear(64, 1, bias=False), (torch.zeros(2, 64),)
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
    for part in ("What each side tried", "Equal time for both", "Final comparison: mse", "lr = "):
        assert part in printed
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["schema"] == "opdf-advise/1"
    assert written["recommendation"] in printed
    assert written["budget_seconds"] == 60


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
