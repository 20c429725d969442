"""Each example runs, learns, and leaves behind what it says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from opdf_compile.io.torchvision_shim import prepare_torchvision

FOLDER = Path(__file__).parents[2] / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def losses_of(printed: str) -> tuple[float, float]:
    found = re.search(r"loss (\d+\.\d+) -> (\d+\.\d+)", printed)
    assert found, printed
    return float(found[1]), float(found[2])


def test_plain_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = load("plain_loop").main(tmp_path / "bundle")
    printed = capsys.readouterr().out
    first, last = losses_of(printed)
    assert last < 0.5 * first
    assert report and report.verdict == "pass"
    assert "3 weights: 4,496 parameters deployed, 13,362 trained" in printed
    names = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert {"student.onnx", "reference", "plan.json"} <= names


def test_bare_program(capsys: pytest.CaptureFixture[str]) -> None:
    losses, student = load("bare_program").main()
    assert losses[-1] < 0.2 * losses[0]
    assert "cores of 0.weight: (1, 8, 4, 16), " in capsys.readouterr().out
    assert isinstance(student, nn.Sequential) and len(list(student.parameters())) == 4


@pytest.mark.slow
def test_hf_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_torchvision()
    example = load("hf_trainer")
    loss = example.main(tmp_path)
    assert loss < 0.3  # Two classes are told apart by chance with 0.69.
    assert "AdamW steps the cores" in capsys.readouterr().out
    loaded = example.BertForSequenceClassification.from_pretrained(tmp_path / "student")
    assert list(loaded.state_dict()) == list(example.make_student().state_dict())


def test_lightning_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, student = load("lightning_module").main(tmp_path)
    first, last = losses_of(capsys.readouterr().out)
    assert last < 0.5 * first
    saved = torch.load(tmp_path / "student.pt")
    assert list(saved) == list(module.student.state_dict())
    assert all(torch.equal(saved[name], value) for name, value in student.state_dict().items())


def test_accelerate_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("accelerate_loop")
    losses, student = example.main(tmp_path)
    assert losses_of(capsys.readouterr().out)[1] < 0.5 * losses[0]
    saved = torch.load(tmp_path / "student.pt")
    assert all(torch.equal(saved[name], value) for name, value in student.state_dict().items())
    assert (tmp_path / "state" / "optimizer.bin").exists()


@pytest.mark.slow
def test_distill_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses, report = load("distill_plain").main(tmp_path / "bundle")
    printed = capsys.readouterr().out
    assert losses[-1] < 0.2 * losses[0]
    assert report and report.verdict == "pass"
    assert "8 of 8 tensors copied" in printed and "hard" in printed
    assert (tmp_path / "bundle" / "student.onnx").exists()


@pytest.mark.slow
def test_distill_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_torchvision()
    example = load("distill_trainer")
    example.main(tmp_path)
    printed = capsys.readouterr().out
    first, last = losses_of(printed)
    assert last < 0.9 * first
    assert "41 of 41 tensors copied" in printed
    loaded = example.BertForSequenceClassification.from_pretrained(tmp_path / "student")
    assert list(loaded.state_dict()) == list(example.make_model(2).state_dict())


def test_distill_lightning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, student = load("distill_lightning").main(tmp_path)
    first, last = losses_of(capsys.readouterr().out)
    assert last < 0.5 * first
    assert set(module.loss.parts) == {"skew", "relation"}
    saved = torch.load(tmp_path / "student.pt")
    assert all(torch.equal(saved[name], value) for name, value in student.state_dict().items())


def test_every_example_is_run_and_short() -> None:
    files = sorted(path.stem for path in FOLDER.glob("*.py"))
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert files and set(files) <= tested
    for name in files:
        assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 100, name
