"""An example of a wrong shape: our sentence on stderr and nothing else, whatever the command."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from opdf_compile.cli import main

MODEL = "torch.nn:Linear?in_features=16&out_features=16"
EXAMPLE = ("--input", "input=2x17:float32")
RECIPE = """
[student]
model = "net.py:student"
[data]
source = "wide.npz"
[[loss]]
kind = "task"
[optimizer]
lr = 0.003
[training]
epochs = 1
"""
COMMANDS = {
    "inspect": ["inspect", MODEL, *EXAMPLE],
    "plan": ["plan", MODEL, *EXAMPLE, "-o", "plan.json"],
    "expand": ["expand", MODEL, *EXAMPLE, "-o", "expanded.pt2"],
    "export": ["export", MODEL, *EXAMPLE, "-o", "other.onnx"],
    "export a bundle": ["export", MODEL, "--reference", MODEL, *EXAMPLE, "-o", "bundle"],
    "check-data": ["check-data", MODEL, "--onnx", "good.onnx", *EXAMPLE],
    "verify": ["verify", "good.onnx", "--reference", "good.onnx", "--shapes", "input=2x17"],
    "distill": ["distill", "recipe.toml"],
    "distill --check": ["distill", "recipe.toml", "--check"],
    "advise": ["advise", "recipe.toml"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shapes")
    (made / "net.py").write_text(
        "import torch\ndef student():\n    return torch.nn.Linear(16, 3)\n", encoding="utf-8"
    )
    (made / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    rng = np.random.default_rng(0)
    features = rng.random((60, 17), dtype=np.float32)
    np.savez(made / "wide.npz", features=features, labels=rng.integers(0, 3, 60))
    export = ["export", MODEL, "--input", "input=2x16:float32", "-o", str(made / "good.onnx"), "-q"]
    assert main(export) == 0
    return made


class Records(logging.Handler):
    """What torch's own loggers print, wherever the stream is that they print to."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)  # Below it torch talks to files and to nobody.
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def torch_log() -> Iterator[list[str]]:
    import torch  # noqa: F401, PLC0415  # Its loggers are set up when it is imported.

    handler = Records()
    registered = [
        found
        for name, found in logging.root.manager.loggerDict.items()
        if name.partition(".")[0] == "torch" and isinstance(found, logging.Logger)
    ]
    for logger in registered:
        logger.addHandler(handler)
    yield handler.messages
    for logger in registered:
        logger.removeHandler(handler)


@pytest.mark.parametrize("name", COMMANDS)
def test_one_sentence_and_not_a_word_of_torch(
    name: str,
    folder: Path,
    torch_log: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert main(COMMANDS[name]) == 2
    out, err = capsys.readouterr()
    assert (out, torch_log) == ("", [])
    assert err.count("\n") == 1
    assert err.startswith("opdf-compile: ")
    assert "17" in err
    assert [file for file in sorted(folder.iterdir()) if file not in before] == []


def test_debug_shows_what_torch_said(
    folder: Path,
    torch_log: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert main([*COMMANDS["inspect"], "--debug"]) == 2
    assert any("failed while attempting to run meta" in line for line in torch_log)
    assert "Traceback" in capsys.readouterr().err


# The tests above listen to the same loggers, and one of them shows that they hear them.
@pytest.mark.slow
def test_the_same_in_a_process_of_its_own(folder: Path) -> None:
    command = [sys.executable, "-m", "opdf_compile", *COMMANDS["plan"]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("opdf-compile: Linear rejects the example inputs")
