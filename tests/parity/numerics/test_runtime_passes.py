"""A file that is right, and that the runtime's graph passes make another function of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import opdf_compile as opdf

SENTENCE = "without its graph optimisation onnxruntime keeps this file's numbers within"
X = torch.randn(4, 8)


class Norm(nn.Module):
    """A norm of mean - x, or of x - mean, which is the layer norm that the runtime knows."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.turned = sign < 0
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        away = mean - x if self.turned else x - mean
        norm = away / torch.sqrt((away**2).mean(-1, keepdim=True) + 1e-5)
        found: Tensor = self.head(norm * torch.linspace(0.5, 2, 8) + torch.linspace(-1, 1, 8))
        return found


def numerics(model: nn.Module, reference: nn.Module, folder: Path) -> opdf.ParityReport:
    opdf.export_onnx(model, (X,), folder / "b", reference=reference, opset=18)
    return opdf.verify(folder / "b", only="numerics", device="cpu")


def test_the_pass_is_named_as_the_cause(tmp_path: Path) -> None:
    report = numerics(Norm(-1).eval(), Norm(-1).eval(), tmp_path)
    assert report.numerics.verdict == "fail"
    assert any(SENTENCE in note for note in report.environment["notes"])
    assert SENTENCE in str(report)


def test_nothing_is_said_of_a_norm_that_it_knows(tmp_path: Path) -> None:
    report = numerics(Norm(1).eval(), Norm(1).eval(), tmp_path)
    assert report.numerics.verdict == "pass"
    assert SENTENCE not in str(report)


def test_nothing_is_said_where_the_file_itself_is_wrong(tmp_path: Path) -> None:
    """Check data of one model, weights of another."""
    opdf.export_onnx(Norm(1).eval(), (X,), tmp_path / "a.onnx", opset=18)
    check = tmp_path / "a.check.npz"
    stored = dict(np.load(check, allow_pickle=False))
    opdf.export_onnx(Norm(1).eval(), (X,), tmp_path / "a.onnx", opset=18)
    other = dict(np.load(check, allow_pickle=False))
    np.savez(check, **{**stored, **{k: v for k, v in other.items() if v.dtype.kind in "US"}})
    report = opdf.verify(tmp_path / "a.onnx", only="numerics", device="cpu")
    assert report.numerics.verdict == "fail"
    assert SENTENCE not in str(report)
