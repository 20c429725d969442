"""`distill` as a command: what it checks, prints and returns; others test how it trains."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from opdf_compile.cli import main
from opdf_compile.cli.distill_live import Screen
from opdf_compile.distill.recipe import Job
from opdf_compile.distill.run.events import (
    Finished,
    Saved,
    Stage,
    Started,
    Stepped,
    Validated,
    Watch,
)
from opdf_compile.distill.run.running import RunResult
from opdf_compile.errors import RunInterrupted

CODE = """
import torch

def student(width=8):
    first, last = torch.nn.Linear(16, width), torch.nn.Linear(width, 3)
    return torch.nn.Sequential(first, torch.nn.ReLU(), last)

def data():
    x = torch.linspace(-1, 1, 640).reshape(40, 16)
    return {"x": x, "labels": torch.arange(40) % 3}
"""

RECIPE = """
[student]
model = "code.py:student"
warm_start = true
[teacher]
model = "code.py:student"
[data]
source = "code.py:data"
batch = 8
[[loss]]
kind = "hinton"
[plan]
cores = 3
[optimizer]
lr = 0.1
[training]
epochs = 2
"""

EVENTS = (
    Started(0, 8, 4, "cpu", 1, "accuracy", True),
    Stage("the teacher's outputs", 0.5),
    Stepped(4, 1.0, 0.51, {"hinton": 0.51}, 0.1, 0.2),
    Validated(4, 1.0, 0.625, 0.625, 4, 3),
    Saved(4, Path("step-4")),
    Stepped(8, 2.0, 0.25, {"hinton": 0.25}, 0.01, 0.4),
    Validated(8, 2.0, 0.5, 0.625, 4, 2),
    Stage("verifying", 0.1),
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a recipe in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "code.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "made" / "small.toml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `run` was asked for; it tells its events and finds what the last entry says."""
    calls: list[dict[str, Any]] = []

    def run(job: Job, folder: Path, *, resume: bool, watch: Watch) -> RunResult:
        calls.append({"job": job, "folder": folder, "resume": resume})
        for event in EVENTS:
            watch(event)
        metrics = {"untouched": 0.3, "teacher": 0.8, "student": 0.625}
        report = Path(folder) / "report.html"
        watch(Finished("pass", metrics, Path(folder) / "bundle", report))
        verdicts = {"refuted": "fail", "unexported": None}
        return RunResult(
            verdict=verdicts.get(str(folder), "pass"),
            metrics=metrics,
            weights=Path(folder) / "student.safetensors",
            bundle=Path(folder) / "bundle",
            report=report,
            folder=Path(folder),
            steps=8,
            best_step=4,
        )

    monkeypatch.setattr("opdf_compile.distill.run.run", run)
    return calls


def test_check_prints_plan_and_layer_map_and_trains_nothing(
    folder: Path, asked: list[dict[str, Any]], capsys: Capture
) -> None:
    assert main(["distill", "made/small.toml", "--check"]) == 0
    out = capsys.readouterr().out
    for text in (
        "code.py:student",
        "28 train, 6 validation, 6 test",
        "Layer map",
        "0.weight",
        "8x16",
    ):
        assert text in out
    assert "made/small.toml can run; nothing was trained" in out
    assert asked == []
    assert sorted(path.name for path in folder.iterdir()) == ["made"]


def test_check_as_json(folder: Path, capsys: Capture) -> None:
    assert main(["distill", "made/small.toml", "--dry-run", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "opdf-distill-check/1"
    assert found["examples"] == {"train": 28, "validation": 6, "test": 6}
    assert found["layer_map"] == [[n, n] for n in ("0.weight", "2.weight")]
    assert found["plan"]["schema"] == "opdf-plan/1"
    assert len(found["fingerprint"]) == 64


def test_the_run_folder_is_named_after_the_recipe(
    folder: Path, asked: list[dict[str, Any]], capsys: Capture
) -> None:
    assert main(["distill", "made/small.toml"]) == 0
    assert (asked[0]["folder"], asked[0]["resume"]) == (Path("small-run"), True)
    out = capsys.readouterr().out
    for text in (
        "test accuracy",
        "on 6 test examples",
        "0.6250",
        "parity: pass",
        "Wrote small-run/",
    ):
        assert text in out


def test_fresh_and_out_are_passed_on(folder: Path, asked: list[dict[str, Any]]) -> None:
    assert main(["distill", "made/small.toml", "-o", "other", "--fresh", "-q"]) == 0
    assert (asked[0]["folder"], asked[0]["resume"]) == (Path("other"), False)


def test_refuted_parity_exits_1_and_says_so_in_the_json(
    folder: Path, asked: list[dict[str, Any]], capsys: Capture
) -> None:
    assert main(["distill", "made/small.toml", "-o", "refuted", "--json", "-"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "opdf-distill/1"
    assert (found["verdict"], found["steps"], found["best_step"]) == ("fail", 8, 4)
    assert found["metrics"]["student"] == 0.625
    assert found["bundle"] == "refuted/bundle"


def test_without_an_export_no_verdict_is_told(
    folder: Path, asked: list[dict[str, Any]], capsys: Capture
) -> None:
    assert main(["distill", "made/small.toml", "-o", "unexported"]) == 0
    told = capsys.readouterr().out
    assert "curves and metrics" in told and "parity" not in told and "verdict" not in told
    assert main(["distill", "made/small.toml", "-o", "unexported", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] is None


def test_verbose_says_validations_as_lines(
    folder: Path, asked: list[dict[str, Any]], capsys: Capture
) -> None:
    assert main(["distill", "made/small.toml", "-v"]) == 0
    err = capsys.readouterr().err
    assert "info: step 8: loss 0.25, accuracy 0.5000 (best 0.6250 at step 4)" in err
    assert "info: verifying" in err


def test_other_ranks_print_nothing(
    folder: Path, asked: list[dict[str, Any]], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["distill", "made/small.toml", "--json", "-"]) == 0
    assert capsys.readouterr() == ("", "")
    (folder / "wrong.toml").write_text(RECIPE.replace("epochs", "epoch"), encoding="utf-8")
    assert main(["distill", "wrong.toml"]) == 2
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_run_says_how_to_go_on(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> RunResult:
        raise RunInterrupted("stopped at step 4 of 8; run the same command to go on")

    monkeypatch.setattr("opdf_compile.distill.run.run", run)
    assert main(["distill", "made/small.toml", "-q"]) == 130
    err = capsys.readouterr().err
    assert err == "opdf-compile: stopped at step 4 of 8; run the same command to go on\n"


def test_the_live_table_shows_bars_and_the_last_validations() -> None:
    screen, stream = Screen(), io.StringIO()
    console = Console(file=stream, width=100, force_terminal=False)
    for event in EVENTS:
        screen.told(event)
    console.print(screen.drawn())
    out = stream.getvalue()
    assert "training, loss 0.25" in out
    assert "8/8" in out
    assert "verifying" in out
    assert "the teacher's outputs" not in out
    rows = [line.split() for line in out.splitlines() if line.strip()[:2] in ("1.", "2.")]
    assert rows == [
        ["1.00", "4", "0.51", "0.1", "0.6250", "best"],
        ["2.00", "8", "0.25", "0.01", "0.5000", "2", "left"],
    ]
    screen.told(Finished("pass", {}, None))
    stream.truncate(0)
    console.print(screen.drawn())
    assert "verifying" not in stream.getvalue()
