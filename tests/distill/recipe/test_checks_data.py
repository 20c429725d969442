"""Data that does not fit is found before training; so is what a user of a recipe cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opdf_compile.distill.losses import TaskLoss
from opdf_compile.distill.recipe import prepare, read_recipe
from opdf_compile.errors import InputError, RecipeError

CODE = """
import torch
from torch import nn

def student(): return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
def teacher(): return nn.Linear(8, 4)

def data(nan=False, shift=0, unlabelled=False):
    x = torch.randn(80, 8, generator=torch.Generator().manual_seed(0))
    labels = x[:, :4].argmax(1) + shift
    if unlabelled:
        labels[::9] = -100
    if nan:
        x[7, 2] = float("nan")
    return {"x": x, "labels": labels}
"""

RECIPE = """[student]
model = "code.py:student"
[teacher]
model = "code.py:teacher"
[data]
source = "code.py:data"
[[loss]]
kind = "task"
[optimizer]
name = "SGD"
lr = 0.01
[training]
epochs = 2
"""


def written(folder: Path, old: str, new: str) -> Path:
    (folder / "code.py").write_text(CODE, encoding="utf-8")
    torch.save(torch.nn.Linear(8, 4), folder / "model.pt")
    assert old in RECIPE
    file = folder / "recipe.toml"
    file.write_text(RECIPE.replace(old, new), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("py:data", "py:data?nan=true", 6, ("x is NaN in 1 of", "part", "leave those")),
        ("py:data", "py:data?shift=3", 7, ("3 to 6", "4 classes", "0 to 3")),
        ("py:data", "py:data?shift=-1", 7, ("-1 to 2", "4 classes", "number the labels")),
        ("code.py:student", "model.pt", 2, ("is a pickle", "FILE.py:callable")),
        (
            "[teacher]",
            "warm_start = true\n[teacher]",
            3,
            ("no blocks of equal names", 'write layer_map = "found"'),
        ),
    ],
)
def test_a_misfit_is_a_sentence_with_its_line(
    old: str, new: str, line: int, says: tuple[str, ...], tmp_path: Path
) -> None:
    file = written(tmp_path, old, new)
    with pytest.raises(RecipeError) as caught:
        prepare(read_recipe(file), base=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{file}:{line}: ")
    assert [part for part in says if part not in message] == []
    assert "--trust-pickle" not in message
    assert "found_map" not in message


def test_labels_that_leave_an_example_out_are_no_misfit(tmp_path: Path) -> None:
    file = written(tmp_path, "py:data", "py:data?unlabelled=true")
    assert len(prepare(read_recipe(file), base=tmp_path).data.train) > 0


def test_the_plan_has_the_dtype_of_its_student(tmp_path: Path) -> None:
    """The command shows the plan of a float32 student before a run in float64 asks for its own."""
    file = written(tmp_path, "[optimizer]", "[plan]\ncores = 3\n[optimizer]")
    job = prepare(read_recipe(file), base=tmp_path)
    for dtype in (torch.float32, torch.float64, torch.float32):
        student = job.make_student(0).to(dtype)
        job.optimizer(student, job.plan(student)).step()


def test_a_label_that_no_class_has_is_a_sentence() -> None:
    """Examples that a dataset makes one by one are not looked at before."""
    loss = TaskLoss("cross_entropy")
    with pytest.raises(InputError, match=r"labels from 0 to 6 and 4 classes.*-100 for none"):
        loss(torch.zeros(3, 4), torch.tensor([1, -100, 6]))
