"""Operations that torch's exporter cannot translate go into a file and compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import ExportError


class Mixed(nn.Module):
    """A mask of integers, and squeezes of axes of which not all are 1."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        y = self.project(x)
        return y.squeeze(-1), y[:, None, :1].squeeze((1, 2, 3)), 1.0 - mask, 2 - y, 3 - mask


class Grouped(nn.Module):
    """Filters of each example's own: the batch is the number of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Linear(3, 12)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.filters(x.mean((2, 3))).view(-1, 3, 1, 1)
        grouped = x.reshape(1, -1, *x.shape[2:])
        return F.conv2d(grouped, weight, groups=x.shape[0]).view(-1, 4, *x.shape[2:])


def test_the_file_computes_what_the_model_does(tmp_path: Path) -> None:
    model = Mixed().eval()
    opdf.export_onnx(model, example(2), tmp_path / "m.onnx")
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for batch in (1, 2, 5):
        inputs = example(batch)
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        for found, wanted in zip(session.run(None, feed), model(*inputs), strict=True):
            assert found.shape == wanted.shape and found.dtype == wanted.detach().numpy().dtype
            # A sum of 4 products of numbers about 1 in float32.
            assert np.allclose(found, wanted.detach().numpy(), rtol=0, atol=1e-5)


def test_groups_that_follow_from_the_batch_are_refused_with_the_way_out(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 5, 5)
    with pytest.raises(ExportError, match="number of groups .* dynamic=False"):
        opdf.export_onnx(Grouped().eval(), (x,), tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_way_out(tmp_path: Path) -> None:
    model, x = Grouped().eval(), torch.randn(2, 3, 5, 5)
    opdf.export_onnx(model, (x,), tmp_path / "g.onnx", dynamic=False)
    session = ort.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    assert np.allclose(found, model(x).detach().numpy(), rtol=0, atol=1e-5)


def example(batch: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(batch)
    return torch.randn(batch, 3, 4), torch.randint(0, 2, (batch, 4))
