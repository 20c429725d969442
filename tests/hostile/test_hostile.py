"""Hostile files: each ends in exit code 2 and one sentence that names the actual reason.

All run in one process with limits (memory, seconds, file sizes) that watches itself: nothing is
executed, imported or fetched, nothing is written, and the folder is as it was. The unharmed file of
each kind goes through the same commands, so that no case passes for a wrong reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile_case import Case
from hostile_folders import FOLDERS
from hostile_onnx import ONNX
from hostile_pt2 import PT2
from hostile_safetensors import SAFETENSORS
from hostile_texts import TEXTS

HERE = Path(__file__).parent
CASES: tuple[Case, ...] = (*PT2, *SAFETENSORS, *FOLDERS, *ONNX, *TEXTS)
CONTROLS = {
    "program": "inspect {good}/model.pt2",
    "program with weights": "inspect {good}/model.pt2 --weights {good}/weights.safetensors",
    "program with shards": "inspect {good}/model.pt2 --weights {good}/shards",
    "program with inputs": "inspect {good}/model.pt2 --inputs {good}/inputs.npz",
    "plan": "expand {good}/model.pt2 --plan {good}/plan.json -o out/o.pt2",
    "expanded program": "fold {good}/expanded.pt2 -o out/folded.pt2",
    "cores": "fold {good}/cores.safetensors -o out/o.safetensors",
    "check data": "verify {good}/student.onnx --only numerics --device cpu",
    "ONNX": "verify {good}/student.onnx --reference {good}/reference.onnx --device cpu "
    "--only structure",
}


@pytest.fixture(scope="module")
def results(good: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of every case, from one run in a limited process."""
    root = tmp_path_factory.mktemp("hostile")
    listed = []
    for place, case in enumerate(CASES):
        folder = root / str(place)
        (folder / "out").mkdir(parents=True)
        case.build(good, folder)
        listed.append({"name": case.name, "command": case.command, "folder": str(folder)})
    for name, command in CONTROLS.items():
        folder = root / name.replace(" ", "_")
        (folder / "out").mkdir(parents=True)
        listed.append({"name": name, "command": command.format(good=good), "folder": str(folder)})
    (root / "cases.json").write_text(json.dumps(listed))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(HERE.parents[1]), str(root / "evil"))),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, HERE / "limited_run.py", root / "cases.json", root / "results.json"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((root / "results.json").read_text())
    return found


def test_names_are_different_and_there_are_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 45


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_file_ends_in_a_sentence(case: Case, results: dict[str, Any]) -> None:
    result = results[case.name]
    assert result["code"] == 2, result
    lines = result["err"].splitlines()
    assert len(lines) == 1, result["err"]
    assert lines[0].startswith("opdf-compile: ")
    assert case.words in lines[0], lines[0]
    assert lines[0].isprintable()
    assert result["out"] == ""
    assert result["events"] == []
    assert not result["changed"]


@pytest.mark.parametrize("name", CONTROLS)
def test_the_unharmed_file_passes(name: str, results: dict[str, Any]) -> None:
    result = results[name]
    assert result["code"] == 0, result
    # The watch is awake: a command that writes is seen to write, into its output folder only.
    writes = [event for event in result["events"] if event.startswith("open for writing")]
    assert result["changed"] == bool(writes) == (" -o " in CONTROLS[name])
    assert all("/out/" in event or " out/" in event for event in writes), writes
