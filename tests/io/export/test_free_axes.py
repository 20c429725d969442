"""Every free axis of an export is run at other sizes; one that the file does not bear is fixed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.io.evidence.free_sizes import free_sizes
from opdf_compile.io.export import axis_trials
from opdf_compile.io.export.axis_trials import try_free_axes
from opdf_compile.io.export.build import build_export
from opdf_compile.io.export.translate import export_program

BCHW, BCL = ["B", 3, "H", "W"], ["B", 3, "L"]
IMAGE, SIGNAL = (2, 3, 14, 14), (2, 3, 16)


class Fn(nn.Module):
    """A function of the input after a convolution."""

    def __init__(self, function: Any, rank: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = (nn.Conv1d if rank == 1 else nn.Conv2d)(3, 4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(self.conv(x))
        return result


def flat(pool: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(features, 2))


def only_in_the_graph(x: Tensor) -> Tensor:
    """A constant of the example's size that torch.export does not see as one."""
    return x[..., :14] if torch.compiler.is_exporting() else x


def wrong_numbers(x: Tensor) -> Tensor:
    """Of the right shape at every size, and of the right value at the example's alone."""
    if torch.compiler.is_exporting():
        return x / 14
    return x / x.shape[-1]


def patches(x: Tensor) -> Tensor:
    """Takes multiples of 7 only."""
    batch, channels, height, width = x.shape
    torch._check(height % 7 == 0)
    cut = x.reshape(batch, channels, height // 7, 7, width)
    return cut.mean(3)


def at_least_twelve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 12, 1)


# module, example's shape, axes asked for, axes that the file declares
CASES: dict[str, tuple[Any, tuple[int, ...], list[Any], list[Any]]] = {
    "average to one cell": (flat(nn.AdaptiveAvgPool2d(1), 4), IMAGE, BCHW, BCHW),
    "average to cells": (flat(nn.AdaptiveAvgPool2d(7), 196), IMAGE, BCHW, ["B", 3, 14, 14]),
    "maximum of cells": (flat(nn.AdaptiveMaxPool2d(2), 16), IMAGE, BCHW, ["B", 3, 14, 14]),
    "cells, no layer behind": (nn.AdaptiveAvgPool2d(2), IMAGE, BCHW, ["B", 3, 14, 14]),
    "a row of cells": (nn.AdaptiveAvgPool2d((2, 1)), IMAGE, BCHW, ["B", 3, 14, 14]),
    "cells of one axis free": (nn.AdaptiveAvgPool2d(7), IMAGE, ["B", 3, 14, "W"], ["B", 3, 14, 14]),
    "average, one axis": (flat(nn.AdaptiveAvgPool1d(4), 16), SIGNAL, BCL, ["B", 3, 16]),
    "maximum, one axis": (flat(nn.AdaptiveMaxPool1d(4), 16), SIGNAL, BCL, ["B", 3, 16]),
    "resized to a fixed size": (
        lambda x: F.interpolate(x, (8, 8), mode="bilinear"),
        IMAGE,
        BCHW,
        BCHW,
    ),
    "resized by a factor": (lambda x: F.interpolate(x, scale_factor=2.0), IMAGE, BCHW, BCHW),
    "cut in the graph alone": (only_in_the_graph, IMAGE, BCHW, ["B", 3, "H", 14]),
    "scaled in the graph alone": (wrong_numbers, IMAGE, BCHW, ["B", 3, "H", 14]),
    "its own transpose": (lambda x: x + x.mT, IMAGE, ["B", 3, "S", "S"], ["B", 3, "S", "S"]),
    "multiples of seven": (patches, IMAGE, BCHW, BCHW),
    "large enough": (at_least_twelve, IMAGE, BCHW, BCHW),
    "dropout in eval": (lambda x: F.dropout(x, 0.5, training=True), IMAGE, BCHW, BCHW),
    "a batch and nothing else": (nn.Flatten(), IMAGE, ["B", 3, 14, 14], ["B", 3, 14, 14]),
}


# The sentences say what was seen.
SEEN = {
    "average to cells": (
        "axis 2 of x (H) is fixed at 14: at 15 the model runs and its ONNX file",
        "axis 3 of x (W) is fixed at 14",
    )
}


def shape_of(file: Path) -> list[Any]:
    (value,) = onnx.load(file).graph.input
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


QUICK = ("average to cells", "cut in the graph alone", "multiples of seven")
SHOWN = [pytest.param(n, marks=() if n in QUICK else (pytest.mark.slow,)) for n in CASES]


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_file_declares_free_is_free(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    function, shape, axes, wanted = CASES[name]
    model, x = Fn(function, rank=len(shape) - 2).eval(), torch.randn(*shape)
    file = opdf.export_onnx(model, (x,), tmp_path / "m.onnx", dynamic={"x": axes})
    found = shape_of(file)
    assert found == wanted
    assert all(sentence in caplog.text for sentence in SEEN.get(name, ()))
    session = onnxruntime.InferenceSession(file)
    for size in (7, 28):
        if name == "large enough" and size == 7:
            continue
        other = [
            size if isinstance(a, str) and a != "B" else d
            for a, d in zip(found, shape, strict=True)
        ]
        y = torch.randn(*other)
        (outcome,) = session.run(None, {"x": y.numpy()})
        with torch.no_grad():
            exact = model(y).numpy()
        assert outcome.shape == exact.shape
        assert name == "dropout in eval" or np.allclose(outcome, exact, atol=1e-5)


def test_a_program_is_fixed_too() -> None:
    net = Fn(flat(nn.AdaptiveAvgPool2d(7), 196)).eval()
    traced = opdf.trace(net, (torch.randn(IMAGE),), dynamic={"x": BCHW}, phases=("eval",))
    export = build_export(traced.programs["eval"], dynamic={"x": BCHW})
    assert set(export.fixed) == {("x", 2), ("x", 3)}
    assert [str(size) for size in export.model.graph.inputs[0].shape] == ["B", "3", "14", "14"]


class Groups(nn.Module):
    """Takes batches of whole groups of sixteen."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 16, 4).sum(1)


def test_a_batch_of_whole_groups_stays_free(tmp_path: Path) -> None:
    file = opdf.export_onnx(Groups(), (torch.randn(32, 4),), tmp_path / "m.onnx")
    assert shape_of(file) == ["batch_size", 4]
    x = torch.randn(48, 4)
    (found,) = onnxruntime.InferenceSession(file).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, Groups()(x), atol=1e-5)


def test_a_program_of_a_large_batch_stays_free(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=10, max=20)
    shapes = {"input": {0: batch}}
    program = torch.export.export(
        nn.Linear(4, 4).eval(), (torch.randn(15, 4),), dynamic_shapes=shapes
    )
    file = opdf.export_onnx(program, (), tmp_path / "m.onnx")
    assert shape_of(file) == ["batch_size", 4]


@pytest.mark.slow
def test_student_and_reference_come_out_with_the_same_axes(tmp_path: Path) -> None:
    student, reference = (Fn(flat(nn.AdaptiveAvgPool2d(7), 196)).eval() for _ in range(2))
    x = torch.randn(IMAGE)
    opdf.export_onnx(student, (x,), tmp_path / "out", reference=reference, dynamic={"x": BCHW})
    assert opdf.verify(tmp_path / "out", only="structure,numerics")
    assert shape_of(tmp_path / "out" / "student.onnx") == ["B", 3, 14, 14]


def test_an_axis_that_the_reference_alone_breaks_is_fixed_in_the_student_too(
    tmp_path: Path,
) -> None:
    x = torch.randn(IMAGE)
    plain, odd = Fn(lambda x: x / x.shape[-1]).eval(), Fn(wrong_numbers).eval()
    bundle = opdf.export_onnx(plain, (x,), tmp_path / "two", reference=odd, dynamic={"x": BCHW})
    assert shape_of(bundle / "student.onnx") == ["B", 3, "H", 14]


def test_sizes_that_the_model_ties_are_one() -> None:
    traced = opdf.trace(Fn(lambda x: x + x.mT), (torch.randn(IMAGE),), dynamic={"x": BCHW})
    program = traced.programs["eval"]
    batch, side = free_sizes(program, (traced.args, {}), traced.axis_names)
    assert (batch.letters, batch.is_batch, batch.size) == (("B",), True, 2)
    assert (side.letters, side.places) == (("H", "W"), (("x", 2), ("x", 3)))
    near, far = side.others(within=True)
    assert near[0] == 15 and far[0] == 7 and 28 in far and 14 not in near + far


def trial(model: nn.Module, x: Tensor, axes: list[Any], other: nn.Module) -> axis_trials.Trials:
    """The axes of one model tried on the file of another."""
    traced = opdf.trace(model, (x,), dynamic={"x": axes}, phases=("eval",))
    theirs = opdf.trace(other, (x,), dynamic={"x": axes}, phases=("eval",))
    names = theirs.axis_names
    file = export_program(
        theirs.programs["eval"],
        input_names=theirs.input_names,
        output_names=theirs.output_names,
        axis_names=names,
    )
    return try_free_axes(file, traced.programs["eval"], ((x,), {}), names, model)


def test_a_wrong_file_is_found_and_the_right_one_is_not() -> None:
    right, x = Fn(lambda x: x.mean((2, 3))), torch.randn(IMAGE)
    assert trial(right, x, BCHW, right) == axis_trials.Trials()
    wrong = Fn(lambda x: x.sum((2, 3)) / 196)
    found = trial(right, x, BCHW, wrong)
    assert list(found.broken) == [("x", 2), ("x", 3)]
    assert "differs by" in found.broken["x", 2]


def test_what_cannot_be_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Fn(nn.AdaptiveAvgPool2d(7)), torch.randn(IMAGE)
    monkeypatch.setattr(axis_trials, "LARGEST", 1)
    assert "GiB of weights" in trial(model, x, BCHW, model).note
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert (
        "were not run at other sizes: " in build_export(model, (x,), dynamic={"x": BCHW}).notes[-1]
    )
