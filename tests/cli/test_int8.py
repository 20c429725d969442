"""`export --dtype int8 --calibrate F.npz` and the verdict on what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from opdf_compile.cli import main

STUDENT = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), (torch.randn(16, 8),)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student.py").write_text(STUDENT, encoding="utf-8")
    rows = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", input=rows)
    return tmp_path


def run(line: str) -> int:
    return main(line.split())


def test_a_bundle_in_int8_is_calibrated_and_verified(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = "-o b --reference student.py:build --dtype int8 --calibrate rows.npz --json -"
    assert run(f"export student.py:build {asked}") == 0
    (drop,) = json.loads(capfd.readouterr().out)["drops"]
    assert drop["rows"] == 64 and 0 < drop["relative_rms"] < 0.1
    assert run("verify b --only structure,numerics --device cpu") == 0
    told = " ".join(capfd.readouterr().out.split())
    assert "both files are quantised (int8, QDQ)" in told and "Quantised" in told
    assert "relative RMS" in told and "verdict: pass" in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--dtype int8", "int8 was asked for without calibration data"),
        ("--calibrate rows.npz", "the dtype is not given, wanted int8"),
        ("--dtype int8 --calibrate none.npz", "none.npz does not exist"),
    ],
)
def test_what_is_missing_is_one_sentence_and_nothing_is_written(
    folder: Path, options: str, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(f"export student.py:build -o out.onnx {options}") == 2
    assert sentence in " ".join(capfd.readouterr().err.split())
    assert not list(folder.glob("out*"))
