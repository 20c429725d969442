"""Attention with a boolean mask: zeros for a row that sees no key, and no IsNaN."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opdf_compile.io.onnx.export import export_onnx


class Attention(nn.Module):
    """Two heads; the mask is given, causal, or left out."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)
        self.causal = causal

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.project(x).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        if mask is not None:
            mask = mask[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def run(path: Path, **inputs: Tensor) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {n: t.numpy() for n, t in inputs.items()})[0])


@pytest.mark.parametrize(("dtype", "atol"), [(None, 1e-6), ("fp16", 4e-3)])
def test_a_row_that_sees_no_key_is_zero(dtype: str | None, atol: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Attention().eval(), torch.randn(2, 5, 8)
    seen = torch.ones(2, 5, dtype=torch.bool)
    path = export_onnx(net, {"x": x, "mask": seen}, tmp_path / "m.onnx", dtype=dtype)
    assert operators(path)["IsNaN"] == 0 and operators(path)["Where"] == 2
    seen[0, 3:] = False
    seen[1] = False
    found = run(path, x=x.half() if dtype else x, mask=seen)
    np.testing.assert_allclose(found, net(x, seen).detach().numpy(), atol=atol)
    assert not found[1].any() and found[0].any()


@pytest.mark.parametrize("causal", [False, True])
def test_where_every_row_sees_a_key_there_is_no_test_at_all(causal: bool, tmp_path: Path) -> None:
    net, x = Attention(causal=causal).eval(), torch.randn(2, 5, 8)
    path = export_onnx(net, (x,), tmp_path / "m.onnx")
    found = [node for node in onnx.load(path).graph.node if node.op_type == "Softmax"]
    readers = [n.op_type for n in onnx.load(path).graph.node if found[0].output[0] in n.input]
    assert readers == ["MatMul"]
    np.testing.assert_allclose(run(path, x=x), net(x).detach().numpy(), atol=1e-6)


def test_a_nan_of_the_activations_stays_visible(tmp_path: Path) -> None:
    """The exporter's own form would answer a broken input with zeros."""
    net, x = Attention().eval(), torch.randn(2, 5, 8)
    seen = torch.ones(2, 5, dtype=torch.bool)
    path = export_onnx(net, {"x": x, "mask": seen}, tmp_path / "m.onnx")
    x[0, 0, 0] = torch.nan
    assert np.isnan(run(path, x=x, mask=seen)[0]).any()
    assert torch.isnan(net(x, seen)[0]).any()


class Cleaned(nn.Module):
    """A NaN test of the model's own."""

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(x + 1, -1)
        return torch.where(torch.isnan(weights), 0.0, weights)


def test_a_models_own_nan_test_is_left_alone(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    path = export_onnx(Cleaned(), (x,), tmp_path / "m.onnx")
    assert operators(path)["IsNaN"] == 1
    x[0, 0] = torch.nan
    assert not run(path, x=x)[0].any()
