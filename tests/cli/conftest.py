"""A small student as a file, and everything the program makes of it, in one folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from snapshots import snapshot

from opdf_compile.cli import main

STUDENT = '''
"""A student with a convolution, a batch norm, dropout and two linear layers."""

import torch
from torch import nn


class Student(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.hidden = nn.Linear(width * 4, 24)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(24, 5)

    def forward(self, image):
        x = torch.relu(self.norm(self.conv(image)))
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return {"logits": self.head(self.drop(torch.relu(self.hidden(x))))}


def build(width=8):
    torch.manual_seed(1)
    print("a model that prints while it is built")
    return Student(int(width)), (torch.randn(2, 3, 8, 8),)


def bare():
    return build()[0]


def raises():
    raise KeyError("no such checkpoint")


def number():
    return 3
'''


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The student and one good file of each kind, which tests leave as they are."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "student.py").write_text(STUDENT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (
            "plan student.py:build -o plan.json --cores 3",
            "expand student.py:build -o expanded.pt2 --plan plan.json",
            "expand student.py:build -o cores.safetensors",
            "fold expanded.pt2 -o folded.pt2",
            "fold expanded.pt2 -o folded.safetensors",
            "export folded.pt2 -o student.onnx",
            "export folded.pt2 -o bundle --reference student.py:build",
        ):
            assert main([*line.split(), "-q"]) == 0, line
    for file in (folder / "bundle" / "reference").iterdir():
        shutil.copy(file, folder)
    before = snapshot(folder)
    yield folder
    # Tests may add files of their own.
    assert before.items() <= snapshot(folder).items()


@pytest.fixture
def run(made: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Runs a command line in the folder of `made`."""
    monkeypatch.chdir(made)
    return lambda line: main(line.split())
