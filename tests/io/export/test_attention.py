"""Attention over tensors of three, four and five axes goes into a file and computes the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import opdf_compile as opdf


class Attention(nn.Module):
    """Self-attention whose input has `lead` axes between the batch and the length."""

    def __init__(self, lead: tuple[int, ...], *, masked: bool = False) -> None:
        super().__init__()
        self.lead, self.masked = lead, masked
        self.project = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(0, (-1, *self.lead)).chunk(3, dim=-1)
        mask = q.sum(-1)[..., None, :] > 0 if self.masked else None
        mask = mask | torch.eye(x.shape[-2], dtype=torch.bool) if mask is not None else None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(0, len(self.lead))


@pytest.mark.parametrize(
    ("lead", "masked"),
    [
        pytest.param((), False, id="3 axes, plain", marks=pytest.mark.slow),
        pytest.param((), True, id="3 axes, masked", marks=pytest.mark.slow),
        pytest.param((2,), False, id="4 axes, plain", marks=pytest.mark.slow),
        pytest.param((2,), True, id="4 axes, masked", marks=pytest.mark.slow),
        pytest.param((2, 3), False, id="5 axes, plain", marks=pytest.mark.slow),
        pytest.param((2, 3), True, id="5 axes, masked"),
    ],
)
def test_the_file_computes_what_the_model_does(
    lead: tuple[int, ...], masked: bool, tmp_path: Path
) -> None:
    model = Attention(lead, masked=masked).eval()
    rows = int(np.prod(lead, dtype=int))
    opdf.export_onnx(model, (torch.randn(2 * rows, 5, 8),), tmp_path / "a.onnx")
    session = ort.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(2 * rows, 5, 8)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    # Two products of width 8 and 5 in float32, and a softmax between them.
    assert np.allclose(found, model(x).detach().numpy(), rtol=0, atol=1e-5)
