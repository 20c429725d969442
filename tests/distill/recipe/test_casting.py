"""Columns in another dtype than the student's: converted where it is needed, and said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from opdf_compile.distill.recipe import Job, parse_recipe, prepare
from opdf_compile.errors import RecipeError

CODE = """
import torch
from torch import nn

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)
    def forward(self, x):
        return self.head(self.words(x).mean(1))

class Both(Words):
    def forward(self, x, y):
        return self.head(self.words(x).mean(1) + y)

def dense(): return nn.Linear(4, 3)
def wide(): return nn.Linear(4, 3).double()
def words(): return Words()
def both(): return Both()
"""
RECIPE = """
[student]
model = "code.py:{student}"
[data]
source = "data.npz"
[[loss]]
kind = "task"
[optimizer]
lr = 0.01
[training]
epochs = 1
"""
Columns = dict[str, np.ndarray]
Make = Callable[[str, Columns], Job]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    (tmp_path / "code.py").write_text(CODE, encoding="utf-8")

    def made(student: str, columns: Columns) -> Job:
        np.savez(tmp_path / "data.npz", labels=np.arange(40) % 3, **columns)
        return prepare(parse_recipe(RECIPE.format(student=student)), base=tmp_path)

    return made


def numbers(dtype: str) -> np.ndarray:
    return (np.arange(160).reshape(40, 4) % 7).astype(dtype)


def batch_of(job: Job) -> dict[str, Tensor]:
    return job.data.collate([job.data.train[row] for row in range(3)])


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "int32", "uint8", "bool"])
def test_any_numbers_go_into_a_float32_student(dtype: str, make: Make) -> None:
    job = make("dense", {"x": numbers(dtype)})
    batch, row = batch_of(job), job.data.train[0]
    assert batch["x"].dtype == job.example["x"].dtype == torch.float32
    assert batch["labels"].dtype == torch.int64
    assert torch.equal(batch["x"][0], row["x"].float())
    (note,) = job.notes
    assert f"column x is {dtype} and the student computes in float32" in note
    assert ("not scaled" in note) is not dtype.startswith("float")


def test_what_the_student_takes_is_left_alone(make: Make) -> None:
    for student, dtype in (("dense", "float32"), ("words", "int64"), ("wide", "float64")):
        job = make(student, {"x": numbers(dtype)})
        assert str(batch_of(job)["x"].dtype) == f"torch.{dtype}"
        assert job.notes == ()


def test_the_dtype_is_the_students(make: Make) -> None:
    job = make("wide", {"x": numbers("float32")})
    assert batch_of(job)["x"].dtype == torch.float64


def test_ids_stay_whole_beside_numbers_that_are_converted(make: Make) -> None:
    job = make("both", {"x": numbers("int64"), "y": numbers("float64")})
    batch = batch_of(job)
    assert (batch["x"].dtype, batch["y"].dtype) == (torch.int64, torch.float32)
    assert len(job.notes) == 1 and "column y is float64" in job.notes[0]


def test_the_same_data_has_the_same_fingerprint(make: Make) -> None:
    columns = {"x": numbers("float64")}
    assert make("dense", columns).data.fingerprint == make("wide", columns).data.fingerprint


def test_a_number_that_would_be_infinite_is_refused(make: Make) -> None:
    columns = {"x": numbers("float64")}
    columns["x"][7, 1] = 1e300
    with pytest.raises(RecipeError, match=r"column x is float64 and holds 1e\+300, which is too"):
        make("dense", columns)


def test_no_dtype_helps_against_a_wrong_shape(make: Make) -> None:
    with pytest.raises(RecipeError, match=r"x \[6, 5\] of float32 .*cannot be multiplied"):
        make("dense", {"x": np.zeros((40, 5))})
