"""`plan` and `expand` say which weight is dear, on stderr and with what to paste."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import opdf_compile as opdf
from opdf_compile.cli import main

Capture = pytest.CaptureFixture[str]
BOX_HEAD = "torch.nn:Linear?in_features=12544&out_features=1024"


def test_plan_warns_and_the_option_it_names_is_one(tmp_path: Path, capsys: Capture) -> None:
    line = ["plan", BOX_HEAD, "--input", "input=2x12544:float32", "-o", str(tmp_path / "plan.json")]
    line += ["--cores", "3"]
    assert main([*line, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["entries"][0]["key"] == "weight"
    assert err.count("\n") == 1
    assert err.startswith("warning: weight (1024x12544) adds 552 GFLOP to every step")
    assert "--exclude 'weight'" in err
    assert main([*line, "--exclude", "weight"]) == 2
    assert "no weight is left to plan" in capsys.readouterr().err


def test_expand_warns_once(tmp_path: Path, capsys: Capture) -> None:
    plan, out = str(tmp_path / "plan.json"), str(tmp_path / "cores.safetensors")
    model = [
        "torch.nn:Linear?in_features=1024&out_features=1024",
        "--input",
        "input=2x1024:float32",
    ]
    assert main(["plan", *model, "--cores", "5", "-o", plan, "-q"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["expand", *model, "--plan", plan, "-o", out]) == 0
    err = capsys.readouterr().err
    assert err.count("warning: weight (1024x1024) adds 25.8 GFLOP to every step") == 1


def test_nothing_is_said_of_a_small_layer(tmp_path: Path, capsys: Capture) -> None:
    model = ["torch.nn:Linear?in_features=64&out_features=64", "--input", "input=2x64:float32"]
    assert main(["plan", *model, "--cores", "3", "-o", str(tmp_path / "plan.json")]) == 0
    assert capsys.readouterr().err == ""


def test_a_batch_that_pays_for_nothing_is_told(tmp_path: Path, capsys: Capture) -> None:
    """Three cores at a hundred times the step are not what the help promises for a batch."""
    model = ["torch.nn:Linear?in_features=64&out_features=64", "--input", "input=2x64:float32"]
    for command, out in (("plan", "plan.json"), ("expand", "expanded.safetensors")):
        assert main([command, *model, "-o", str(tmp_path / out)]) == 0
        err = capsys.readouterr().err
        assert err.count("none of the weights to plan sees enough rows of the example batch") == 1
    assert len(opdf.Plan.load(tmp_path / "plan.json").entries[0].core_names) == 3


def test_an_example_that_comes_with_the_model_tells_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three cores for every weight then; with a batch of the user's, what that can pay for."""
    monkeypatch.chdir(tmp_path)
    Path("student.py").write_text(
        "import torch\n"
        "def build():\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.AdaptiveAvgPool2d(1),\n"
        "        torch.nn.Flatten(), torch.nn.Linear(16, 64)), (torch.zeros(2, 3, 32, 32),)\n"
    )
    batch = ["--input", "input=8x3x32x32:float32"]

    def made(*words: str) -> dict[str, int]:
        assert main(["plan", "student.py:build", *words, "-o", "plan.json", "-q"]) == 0
        entries = opdf.Plan.load("plan.json").entries
        return {entry.key: len(entry.core_names) for entry in entries}

    every = {"0.weight": 3, "3.weight": 3}
    assert made() == made("--cores", "3", *batch) == every
    # 8 x 30 x 30 positions pay for the convolution's cores, 8 rows for none of the head's.
    assert made(*batch) == {"0.weight": 3}

    def expanded(*words: str) -> int:
        said = ["-o", "out.safetensors", "-q", "--json", "out.json"]
        assert main(["expand", "student.py:build", *words, *said]) == 0
        weights: int = json.loads(Path("out.json").read_text())["weights"]
        return weights

    assert (expanded(), expanded(*batch)) == (2, 1)
