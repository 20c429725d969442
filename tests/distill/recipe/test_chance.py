"""A teacher that knows nothing is told from one that knows; data in which nothing counts ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from opdf_compile.cli import main
from opdf_compile.distill.recipe import Job, parse_recipe, prepare
from opdf_compile.distill.recipe.chance import teacher_at_chance
from opdf_compile.distill.run import run
from opdf_compile.errors import RecipeError, UserError

CODE = """
import torch
from torch import nn

class Knows(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.share, self.line = share, nn.Linear(4, 4)
    def forward(self, x):
        rows = torch.arange(len(x))[:, None]
        return torch.where(rows < self.share * len(x), x, x.roll(1, 1)) + 0 * self.line(x)

class Ignored:
    def __len__(self): return 40
    def __getitem__(self, row): return {"x": torch.ones(4) * row, "labels": torch.tensor(-100)}

def student(): return nn.Linear(4, 4)
def knows(): return Knows(1.0)
def guesses(): return Knows(0.25)
def regresses(): return nn.Linear(4, 1)
def ignored(): return Ignored(), Ignored(), Ignored()
"""
RECIPE = """
[student]
model = "code.py:student"
[teacher]
model = "code.py:{teacher}"
[data]
source = "{source}"
inputs = ["x"]
batch = 16
[plan]
enabled = false
[[loss]]
kind = "task"
{loss}
[optimizer]
lr = 0.01
[training]
epochs = 1
[export]
enabled = false
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    (tmp_path / "code.py").write_text(CODE, encoding="utf-8")
    labels = np.arange(200) % 4
    columns = {"x": np.eye(4, dtype=np.float32)[labels], "labels": labels}
    np.savez(tmp_path / "data.npz", **columns)
    np.savez(tmp_path / "none.npz", **{**columns, "labels": np.full(200, -100)})
    np.savez(tmp_path / "masked.npz", **columns, mask=np.zeros(200, dtype=np.int64))
    tail = np.where(np.arange(200) < 100, labels, -100)
    parts = {f"train_{name}": column for name, column in columns.items()}
    parts |= {f"validation_{name}": column[100:] for name, column in columns.items()}
    np.savez(tmp_path / "tail.npz", **{**parts, "validation_labels": tail[100:]})

    def written(teacher: str = "knows", source: str = "data.npz", loss: str = "") -> Path:
        file = tmp_path / "recipe.toml"
        text = RECIPE.format(teacher=teacher, source=source, loss=loss)
        file.write_text(text, encoding="utf-8")
        return file

    return written


def job_of(file: Path) -> Job:
    return prepare(parse_recipe(file.read_text(encoding="utf-8")), base=file.parent)


def test_only_the_teacher_that_guesses_is_told(write: Write) -> None:
    assert teacher_at_chance(job_of(write("knows"))) is None
    said = teacher_at_chance(job_of(write("guesses")))
    assert said is not None
    assert "of 32 validation labels rightly" in said
    assert "it is at chance level" in said and "weights in [teacher]" in said


def test_outputs_that_are_no_classes_are_not_judged(write: Write) -> None:
    file = write("regresses", loss='[[loss]]\nkind = "hidden"\nprojection = "learned"')
    assert teacher_at_chance(job_of(file)) is None


@pytest.mark.parametrize(("teacher", "warned"), [("knows", False), ("guesses", True)])
def test_check_warns(
    teacher: str, warned: bool, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", str(write(teacher)), "--check"]) == 0
    assert ("warning: the teacher answers" in capsys.readouterr().err) is warned


@pytest.mark.parametrize(
    ("source", "loss", "sentence"),
    [
        ("none.npz", "", "all labels are -100 in the train part"),
        ("tail.npz", "", "all labels are -100 in the validation part"),
        ("masked.npz", 'mask = "mask"', "all mask is 0 in the train part"),
    ],
)
def test_a_part_in_which_nothing_counts_is_refused(
    source: str, loss: str, sentence: str, write: Write
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        job_of(write(source=source, loss=loss))


def test_a_dataset_in_which_nothing_counts_ends_at_the_first_validation(
    write: Write, tmp_path: Path
) -> None:
    job = job_of(write(source="code.py:ignored"))
    with pytest.raises(UserError, match="accuracy on the validation part is nan after step 2"):
        run(job, tmp_path / "run")
