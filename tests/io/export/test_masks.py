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
from quick import quick
from torch import Tensor, nn

from opdf_compile.artefacts.check_file import check_path, read_check
from opdf_compile.io.export.exporting import export_onnx
from opdf_compile.parity.verdict import verify


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


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Attention, Path]:
    """The net and its file of the default opset; nobody changes them."""
    torch.manual_seed(0)
    net, path = Attention().eval(), tmp_path_factory.mktemp("masked") / "m.onnx"
    seen = torch.ones(2, 5, dtype=torch.bool)
    return net, export_onnx(net, {"x": torch.randn(2, 5, 8), "mask": seen}, path)


@pytest.mark.parametrize(
    ("opset", "dtype", "atol"),
    [
        (None, None, 1e-6),
        # Masks in half precision: tests/io/evidence/test_half_range.py.
        pytest.param(None, "fp16", 4e-3, marks=pytest.mark.slow),
        (23, None, 1e-6),
    ],
)
def test_a_row_that_sees_no_key_is_zero(
    masked: tuple[Attention, Path],
    opset: int | None,
    dtype: str | None,
    atol: float,
    tmp_path: Path,
) -> None:
    net, path = masked
    x, seen = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    if opset or dtype:
        example, target = {"x": x, "mask": seen}, tmp_path / "m.onnx"
        path = export_onnx(net, example, target, dtype=dtype, opset=opset)
    assert operators(path)["IsNaN"] == 0 and operators(path)["Where"] == 2
    seen[0, 3:] = False
    seen[1] = False
    found = run(path, x=x.half() if dtype else x, mask=seen)
    np.testing.assert_allclose(found, net(x, seen).detach().numpy(), atol=atol)
    assert not found[1].any() and found[0].any()


@pytest.mark.parametrize("causal", quick([False, True], {True}))
def test_where_every_row_sees_a_key_there_is_no_test_at_all(causal: bool, tmp_path: Path) -> None:
    net, x = Attention(causal=causal).eval(), torch.randn(2, 5, 8)
    path = export_onnx(net, (x,), tmp_path / "m.onnx")
    found = [node for node in onnx.load(path).graph.node if node.op_type == "Softmax"]
    readers = [n.op_type for n in onnx.load(path).graph.node if found[0].output[0] in n.input]
    assert readers == ["MatMul"]
    np.testing.assert_allclose(run(path, x=x), net(x).detach().numpy(), atol=1e-6)


def test_a_nan_of_the_activations_stays_visible(masked: tuple[Attention, Path]) -> None:
    """The exporter's own form would answer a broken input with zeros."""
    net, path = masked
    x, seen = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    x[0, 0, 0] = torch.nan
    assert np.isnan(run(path, x=x, mask=seen)[0]).any()
    assert torch.isnan(net(x, seen)[0]).any()


class Biased(nn.Module):
    """A mask of lowest numbers: a row of them alone is the mean of all values."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        lowest = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, torch.finfo(x.dtype).min)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=lowest)


@pytest.mark.parametrize("opset", quick([None, 23], {None}))
def test_a_row_of_lowest_numbers_is_the_mean(opset: int | None, tmp_path: Path) -> None:
    net, x = Biased(), torch.randn(2, 1, 5, 8)
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    path = export_onnx(net, (x, mask), tmp_path / "m.onnx", opset=opset)
    mask[0, 0, 3] = False
    found = run(path, x=x, mask=mask)
    np.testing.assert_allclose(found[0, 0, 3], x[0, 0].mean(0), atol=1e-6)
    np.testing.assert_allclose(found, net(x, mask), atol=1e-6)


def test_an_example_with_such_rows_is_evidence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x, seen = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)
    path = export_onnx(Attention(), {"x": x, "mask": seen}, tmp_path / "m.onnx")
    first = read_check(check_path(path)).samples[0]
    assert not first.inputs["mask"].any() and not first.outputs["output"].any()
    assert "allows no key" not in caplog.text
    assert verify(path, only="numerics", device="cpu").verdict == "pass"


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
