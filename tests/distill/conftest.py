"""Small recipes that run in a moment, and what two runs are compared by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opdf_compile.distill.recipe import Job, prepare, read_recipe

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width, drop=0.0, norm=False):
        super().__init__()
        self.first = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.drop = nn.Dropout(drop)
        self.second = nn.Linear(width, 4)

    def forward(self, x):
        return self.second(self.drop(torch.tanh(self.norm(self.first(x)))))

class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(1, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.conv2, self.bn2 = nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.head = nn.Linear(6 * 8, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x[:, None])))
        return self.head(torch.relu(self.bn2(self.conv2(x))).flatten(1))

def student(): return Net(16)
def blocks(): return Blocks()
def shaky(): return Net(16, drop=0.3, norm=True)
def teacher(): return Net(24)

def columns(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=generator)
    return {"x": x, "labels": x[:, :4].argmax(1), "mask": (torch.arange(n) % 3 != 0).long()}

def data(): return columns(40, 0), columns(20, 1), columns(20, 2)
"""

RECIPE = """
[student]
model = "code.py:{student}"
[teacher]
model = "code.py:teacher"
cache = {cache}
[data]
source = "code.py:data"
inputs = ["x"]
batch = {batch}
[plan]
{plan}
[[loss]]
kind = "hinton"
mask = "mask"
[[loss]]
kind = "task"
weight = 0.5
[optimizer]
name = "{optimizer}"
lr = {rate}
{options}
[training]
{training}
[export]
enabled = {export}
[verify]
enabled = {verify}
budget = 2.0
"""

USUAL = {
    "student": "shaky",
    "cache": "false",
    "batch": "8",
    "plan": "enabled = false",
    "optimizer": "AdamW",
    "rate": "0.02",
    "options": "weight_decay = 0.1",
    "training": "epochs = 3\\ncheckpoint_every = 3\\nema = 0.9",
    "export": "false",
    "verify": "false",
}

Write = Callable[..., Path]
Make = Callable[..., Job]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the recipe with some values in place of the usual ones."""
    (tmp_path / "code.py").write_text(CODE, encoding="utf-8")

    def written(**values: str) -> Path:
        file = tmp_path / "recipe.toml"
        filled = {name: value.replace("\\n", "\n") for name, value in {**USUAL, **values}.items()}
        file.write_text(RECIPE.format(**filled), encoding="utf-8")
        return file

    return written


@pytest.fixture
def make(write: Write) -> Make:
    """Prepares that recipe, as a new process would."""

    def made(**values: str) -> Job:
        file = write(**values)
        return prepare(read_recipe(file), base=file.parent)

    return made


@pytest.fixture
def outcome() -> Callable[[Path], dict[str, Any]]:
    """All of a run that must not depend on interruptions: files and log, but not times."""

    def found(folder: Path) -> dict[str, Any]:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        log = [{k: v for k, v in json.loads(e).items() if k != "seconds"} for e in lines]
        newest = max((folder / "checkpoints").glob("step-*"))
        files = sorted([*newest.iterdir(), *folder.glob("bundle/*.onnx")])
        files.append(folder / "student.safetensors")
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        kept = {name: report[name] for name in ("test", "validation", "kept_step", "steps")}
        return {"log": log, "report": kept, **{f.name: f.read_bytes() for f in files}}

    return found
