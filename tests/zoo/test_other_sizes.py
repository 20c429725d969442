"""A file that says what its module says at other batches, and files that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo.architecture import Architecture, Inputs
from zoo.checks import CheckFailed
from zoo.other_sizes import OTHER_BATCHES, run_at_other_sizes


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Padded(Head):
    """Adds a table of two rows, as a translation that made a constant of the batch would."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.randn(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.rows


class Summed(Head):
    """Knows the example's batch: right there, and of the right shape anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * (1 + 1e-3 * (x.shape[0] - 2))


def example(architecture: Architecture, batch: int) -> Inputs:
    return {"x": torch.randn(batch, 6)}


HEAD = Architecture("timm", "head", example)


def write(model: nn.Module, folder: Path, axes: dict[int, str] | None = None) -> Path:
    """The module's file by torch.onnx; free where `axes` says so."""
    dims = axes and dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    torch.onnx.export(
        model.eval(),
        (torch.randn(2, 6),),
        folder / "m.onnx",
        dynamo=True,
        verbose=False,
        input_names=["x"],
        dynamic_shapes={"x": dims} if dims else None,
    )
    return folder / "m.onnx"


def test_the_right_file_agrees_at_every_size(tmp_path: Path):
    model = Head()
    found = run_at_other_sizes(model, HEAD, write(model, tmp_path, {0: "b"}))
    assert list(found) == ["batch"] and list(found["batch"]) == [str(n) for n in OTHER_BATCHES]
    assert all(error <= 1.0 for error in found["batch"].values())


def test_a_file_without_free_axes_has_nothing_to_run(tmp_path: Path):
    model = Head()
    assert run_at_other_sizes(model, HEAD, write(model, tmp_path)) == {}


def test_other_numbers_at_another_size_are_found(tmp_path: Path):
    file = write(Summed(), tmp_path, {0: "b"})
    student = Head()
    student.load_state_dict(_weights(file))
    with pytest.raises(CheckFailed, match=r"at a batch of 1: its outputs differ by 1\.0e-03"):
        run_at_other_sizes(student, HEAD, file)


def test_a_batch_that_became_a_constant_is_found(tmp_path: Path):
    import onnx

    model = Padded()
    file = write(model, tmp_path)
    proto: Any = onnx.load(file)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "b"
    del proto.graph.value_info[:]
    onnx.save(proto, file)
    with pytest.raises(CheckFailed, match=r"at a batch of \d"):
        run_at_other_sizes(Head(), HEAD, file)


def test_a_free_axis_that_is_no_batch_is_named(tmp_path: Path):
    class Any_(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu()

    with pytest.raises(CheckFailed, match=r"nobody asked for: .*axis 1 of x"):
        run_at_other_sizes(Any_(), HEAD, write(Any_(), tmp_path, {1: "w"}))


def _weights(file: Path) -> dict[str, Tensor]:
    import onnx
    from onnx import numpy_helper

    tensors = onnx.load(file).graph.initializer
    found = {t.name: torch.as_tensor(numpy_helper.to_array(t).copy()) for t in tensors}
    return {name: found[name] for name in ("inner.weight", "inner.bias")}
