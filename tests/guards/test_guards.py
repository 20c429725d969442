"""Refused files, through the commands: each ends in exit code 2 and one sentence with the reason.

All run in one process that watches itself: nothing is executed, imported or fetched, nothing is
written, and the folder is as it was. The unharmed file of each kind goes through the same commands,
so that no case passes for a wrong reason. Every file is harmless: it only meets a guard.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from guard_case import Case
from refused_folders import FOLDERS, SLOW_FOLDERS
from refused_inputs import INPUTS
from refused_onnx import ONNX
from refused_pt2 import PT2
from refused_safetensors import SAFETENSORS

from opdf_compile.cli import main

WATCHED_RUN = Path(__file__).parents[1] / "support" / "watched_run.py"
CASES: tuple[Case, ...] = (*PT2, *SAFETENSORS, *FOLDERS, *ONNX, *INPUTS)
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


# A sixth of the table in every run, all kinds among it; the rest with the slow tests.
QUICK = CASES[::6]
REST = (*(case for case in CASES if case not in QUICK), *SLOW_FOLDERS)


def outcomes(cases: Sequence[Case], good: Path, root: Path, *imports: str) -> dict[str, Any]:
    """What became of every case and control, from one run in a watched process."""
    listed = []
    for place, case in enumerate(cases):
        folder = root / str(place)
        (folder / "out").mkdir(parents=True)
        case.build(good, folder)
        listed.append(row(case.name, case.command, folder, case.limits))
    for name, command in CONTROLS.items():
        folder = root / name.replace(" ", "_")
        (folder / "out").mkdir(parents=True)
        listed.append(row(name, command.format(good=good), folder, {}))
    (root / "cases.json").write_text(json.dumps(listed))
    done = subprocess.run(
        [
            *(sys.executable, WATCHED_RUN, root / "cases.json"),
            *(root / "results.json", *imports),
        ],
        env=os.environ | {"PYTHONPATH": str(WATCHED_RUN.parents[2]), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((root / "results.json").read_text())
    return found


def row(name: str, command: str, folder: Path, limits: dict[str, int]) -> dict[str, Any]:
    return {"name": name, "command": command, "folder": str(folder), "limits": limits}


@pytest.fixture(scope="module")
def quick(good: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcomes(QUICK, good, tmp_path_factory.mktemp("guards"))


@pytest.fixture(scope="module")
def rest(good: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcomes(REST, good, tmp_path_factory.mktemp("guards"), "transformers")


def test_names_are_different_and_there_are_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 150


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_a_refused_file_ends_in_a_sentence(case: Case, quick: dict[str, Any]) -> None:
    check_refused(case, quick[case.name])


@pytest.mark.slow
@pytest.mark.parametrize("case", REST, ids=lambda case: case.name)
def test_the_other_refused_files_end_in_sentences(case: Case, rest: dict[str, Any]) -> None:
    check_refused(case, rest[case.name])


def check_refused(case: Case, result: dict[str, Any]) -> None:
    assert result["code"] == 2, result
    lines = result["err"].splitlines()
    assert len(lines) == 1, result["err"]
    assert lines[0].startswith("opdf-compile: ")
    assert re.search(case.words, lines[0]), lines[0]
    assert lines[0].isprintable()
    assert result["out"] == ""
    assert result["events"] == []
    assert not result["changed"]


@pytest.mark.parametrize("name", CONTROLS)
def test_the_unharmed_file_passes(name: str, quick: dict[str, Any]) -> None:
    result = quick[name]
    assert result["code"] == 0, result
    # The watch is awake: a command that writes is seen to write, into its output folder only.
    # What the runtime makes of two equal graphs goes through a temporary folder of our own.
    own = f"open for writing {Path(tempfile.gettempdir()) / 'opdf-verify-'}"
    events = [event for event in result["events"] if not event.startswith(own)]
    writes = [event for event in events if event.startswith("open for writing")]
    assert result["changed"] == bool(writes) == (" -o " in CONTROLS[name])
    assert all("/out/" in event or " out/" in event for event in writes), writes


def test_names_from_a_file_are_shown_and_command_nothing(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in the lines of a result: control characters are spelled out, markup is no markup."""
    made = onnx.load(good / "student.onnx")
    name = "\x1b[0m[bold]w\n\u200b"
    made.graph.node[0].name, made.graph.node[0].op_type = name, "Mul"
    onnx.save(made, tmp_path / "named.onnx")
    line = f"verify {tmp_path}/named.onnx --reference {good}/reference.onnx --only structure"
    assert main(line.split()) == 1
    out, err = capsys.readouterr()
    assert r"\x1b[0m[bold]w" in out
    assert all(line.isprintable() for line in (out + err).splitlines())
