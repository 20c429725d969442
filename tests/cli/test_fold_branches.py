"""`fold` of a model that brings branches: what is printed, written and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[[str], int]
Capture = pytest.CaptureFixture[str]
NETWORK = "self_folding:network --input input=Bx3x6x6:float32 --size B=2"


def test_folded_by_graph_says_each_layer(run: Run, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "o.onnx"
    assert run(f"fold {NETWORK} --by graph -o {out}") == 0
    printed = capsys.readouterr().out
    for words in ("0.2.weight", "0.3.weight", "21 operations before, 9 after", f"Wrote {out}"):
        assert words in printed
    assert (tmp_path / "o.check.npz").exists()


@pytest.mark.slow
def test_json_names_what_was_folded(run: Run, tmp_path: Path, capsys: Capture) -> None:
    assert run(f"fold {NETWORK} --by graph -o {tmp_path / 'o.pt2'} --json -") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["schema"], said["by"]) == ("opdf-fold-branches/1", "graph")
    assert said["operations"] == {"before": 21, "after": 9}
    assert [region["branches"] for region in said["regions"]] == [3, 3]
    assert "0.2.norms.2.weight" in said["regions"][0]["replaced"]
    assert run(f"fold {NETWORK} -o {tmp_path / 'o.safetensors'} --json -") == 0
    said = json.loads(capsys.readouterr().out)
    assert [call["method"] for call in said["calls"]] == ["switch_to_deploy"] * 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fold student.py:build -o o.onnx", "there is nothing to fold"),
        ("fold student.py:build --by method -o o.onnx", "no method that folds it"),
        ("fold student.py:build --model student.py:build -o o.pt2", "leave --model out"),
        ("fold expanded.pt2 --by graph -o o.pt2", "are for branches, expanded.pt2 holds cores"),
        ("fold folded.pt2 --model student.py:build -o o.pt2", "holds no cores"),
    ],
)
def test_what_cannot_be_folded(
    line: str, words: str, made: Path, run: Run, capsys: Capture
) -> None:
    assert run(line) == 2
    assert words in capsys.readouterr().err
    assert not list(made.glob("o.*"))
