"""What the package onnx and the runtime's own tools make of an exported file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from quick import quick
from torch import Tensor, nn

from opdf_compile.io.export.exporting import export_onnx


class Tokens(nn.Module):
    """A pooled transformer layer: six Linears on three axes, one on two."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.pool = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x) for layer in list(self.layer)[:3])
        x = self.layer[3](torch.softmax(q @ k.mT, -1) @ v)
        return torch.tanh(self.pool(self.down(torch.relu(self.up(x)))[:, 0]))


class Images(nn.Module):
    """A small CNN, whose last layer reads two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Steps(nn.Module):
    """An LSTM with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "tokens": (Tokens, (2, 7, 16), 7),
    "images": (Images, (2, 3, 8, 8), 1),
    "steps": (Steps, (2, 5, 6), 1),
}


@pytest.fixture(scope="module", params=quick(NETS, {"tokens"}))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    make, shape, linears = NETS[request.param]
    torch.manual_seed(0)
    x = torch.randn(shape)
    folder = tmp_path_factory.mktemp(request.param)
    path = export_onnx(make(), (x,), folder / "m.onnx")
    return path, {"x": x.numpy()}, linears


def run(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    # A processor without VNNI would cut sums of int8 products off, which is not the file's fault.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def close(path: Path, case: Any, share: float) -> bool:
    """Whether a rewritten file computes the same, up to a share of its largest output."""
    wanted = run(case[0], case[1])
    return bool(np.abs(run(path, case[1]) - wanted).max() <= share * np.abs(wanted).max())


def test_no_initialiser_is_described_twice(case: Any) -> None:
    graph = onnx.load(case[0]).graph
    described = {value.name for value in graph.value_info}
    assert described and not described & {tensor.name for tensor in graph.initializer}


def test_dynamic_quantisation_takes_every_linear(case: Any, tmp_path: Path) -> None:
    quantize_dynamic(case[0], tmp_path / "q.onnx")
    found = Counter(node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node)
    assert found["MatMulInteger"] == case[2] and found["Gemm"] == 0
    assert close(tmp_path / "q.onnx", case, 0.1)


def test_a_weight_behind_a_transpose_would_be_skipped(tmp_path: Path) -> None:
    """The reason for stored weights: if this stops holding, they may be stored as torch does."""
    program = torch.export.export(nn.Linear(16, 16), (torch.randn(2, 7, 16),))
    translated = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    assert translated is not None
    translated.save(tmp_path / "raw.onnx")
    quantize_dynamic(tmp_path / "raw.onnx", tmp_path / "q.onnx")
    assert not any(n.op_type == "MatMulInteger" for n in onnx.load(tmp_path / "q.onnx").graph.node)


class Once(CalibrationDataReader):
    """One batch to calibrate with."""

    def __init__(self, feeds: dict[str, np.ndarray]) -> None:
        self._left = [feeds]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


def test_static_quantisation_takes_it(case: Any, tmp_path: Path) -> None:
    quantize_static(case[0], tmp_path / "q.onnx", Once(case[1]))
    found = Counter(node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node)
    assert found["QuantizeLinear"] > case[2]
    assert close(tmp_path / "q.onnx", case, 0.1)


def test_half_precision_by_the_runtimes_tool(case: Any, tmp_path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(onnx.load(case[0]), keep_io_types=True)
    onnx.save(half, tmp_path / "h.onnx")
    assert any(t.data_type == onnx.TensorProto.FLOAT16 for t in half.graph.initializer)
    assert close(tmp_path / "h.onnx", case, 0.02)


@pytest.mark.parametrize("opset", [15, 17, 21])
def test_onnxs_own_converter_makes_a_valid_file(case: Any, opset: int, tmp_path: Path) -> None:
    converted = onnx.version_converter.convert_version(onnx.load(case[0]), opset)
    onnx.checker.check_model(converted, full_check=True)
    onnx.save(converted, tmp_path / "c.onnx")
    np.testing.assert_array_equal(run(tmp_path / "c.onnx", case[1]), run(case[0], case[1]))


def test_it_merges_with_itself(case: Any) -> None:
    one = onnx.load(case[0])
    two = onnx.compose.add_prefix(onnx.load(case[0]), "two/")
    merged = onnx.compose.merge_models(one, two, io_map=[])
    onnx.checker.check_model(merged, full_check=True)
    assert len(merged.graph.node) == 2 * len(one.graph.node)
