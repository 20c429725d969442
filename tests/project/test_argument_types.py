"""What a caller plausibly hands over in place of another thing is told in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import opdf_compile as opdf
from opdf_compile.errors import UserError


def student() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


X = torch.randn(4, 8)
PLAN_FILE = "the plan is a str, wanted a Plan; make one with .*, or read a file with opdf.Plan.load"


def program() -> torch.export.ExportedProgram:
    return torch.export.export(student().eval(), (X,), strict=False)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: opdf.expand(student(), opdf.plan(student(), cores=2)),  # type: ignore[arg-type]
            "the model is a Sequential, wanted a Traced; opdf.trace",
        ),
        (lambda: opdf.expand(opdf.trace(student(), (X,)), "plan.json"), PLAN_FILE),  # type: ignore[arg-type]
        (lambda: opdf.hoist(student(), "plan.json"), PLAN_FILE),  # type: ignore[arg-type]
        (lambda: opdf.branch(student(), "plan.json"), PLAN_FILE),  # type: ignore[arg-type]
        (lambda: opdf.branch("student.pt", None), "the student is a str, wanted a torch.nn.Module"),  # type: ignore
        (lambda: opdf.Overparam(student(), plan="plan.json"), PLAN_FILE),  # type: ignore[arg-type]
        (
            lambda: opdf.match(program()),  # type: ignore[arg-type]
            r"the model is a ExportedProgram, wanted a torch.nn.Module or opdf.trace\(program\)",
        ),
        (lambda: opdf.plan(program()), "the model is a ExportedProgram, wanted"),  # type: ignore[arg-type]
        (lambda: opdf.plan("resnet18"), "the model is a str, wanted a torch.nn.Module"),  # type: ignore[arg-type]
        (
            lambda: opdf.verify(student()),  # type: ignore[arg-type]
            "the candidate is a Sequential, wanted the path of an ONNX file or a bundle; write one",
        ),
        (
            lambda: opdf.verify("student.onnx", student()),  # type: ignore[arg-type]
            "the reference is a Sequential, wanted the path of an ONNX file or a bundle",
        ),
        (
            lambda: opdf.verify("student.onnx", check={}),  # type: ignore[arg-type]
            "the check data is a dict, wanted the path of a .check.npz",
        ),
        (
            lambda: opdf.trace(student(), (X,), [X]),  # type: ignore[arg-type]
            "kwargs is a list, wanted a mapping of input names",
        ),
        (
            lambda: opdf.export_onnx(student(), (X,), None),  # type: ignore[arg-type]
            "the path is a NoneType, wanted a file or a folder; student.onnx, say",
        ),
        (
            lambda: opdf.export_onnx(student(), (X,), "x.onnx", opset="18"),  # type: ignore[arg-type]
            "opset '18' was asked for, wanted 13 to",
        ),
    ],
)
def test_a_near_miss(
    call: Callable[[], Any], sentence: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        call()
    assert re.match(sentence, str(caught.value))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
