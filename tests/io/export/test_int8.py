"""Static int8: what is written, how far off it may be, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.numpy_helper import to_array
from torch import nn

from opdf_compile.errors import ExportError, InputError
from opdf_compile.io import build_export, quantise
from opdf_compile.io.export.int8 import _near
from opdf_compile.io.export.lowering import unoptimised
from opdf_compile.parity import ArraySession, resolve_device


class Network(nn.Module):
    """A convolution with a batch norm, whose channels differ in size by far, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        with torch.no_grad():
            self.conv.weight.mul_(torch.tensor([1.0, 0.1, 10.0, 0.01])[:, None, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.norm(self.conv(x)).relu().mean((2, 3)))
        return found


class Halved(nn.Module):
    """A bias that the product is added half of, as `torch.addmm` writes into a Gemm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 8) / 4)
        self.bias = nn.Parameter(torch.linspace(1, 2, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight, beta=0.5)


class Tied(nn.Module):
    """A decoder that reads the encoder's square weight the other way round."""

    def __init__(self, kernel: tuple[int, ...]) -> None:
        super().__init__()
        sizes = torch.logspace(-1.3, 0, 8).reshape(8, *[1] * (1 + len(kernel)))
        self.weight = nn.Parameter(sizes * torch.randn(8, 8, *kernel) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.dim() == 2:
            return nn.functional.linear(x, self.weight).relu() @ self.weight
        code = nn.functional.conv2d(x, self.weight).relu()
        return nn.functional.conv_transpose2d(code, self.weight)


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    return torch.randn(64, 2, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def written(
    inputs: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    network = Network().train()
    network(inputs)  # Statistics of a batch.
    file = tmp_path_factory.mktemp("int8") / "a.onnx"
    quantise(build_export(network.eval(), (inputs[:2],)).model, feeds(inputs), file)
    return network, file


def feeds(inputs: torch.Tensor) -> Iterator[dict[str, Any]]:
    for some in inputs.split(16):
        yield {"x": some.numpy()}


def test_weights_are_int8_by_output_channel(written: tuple[nn.Module, Path]) -> None:
    network, file = written
    graph = onnx.load(file).graph
    ops = [node.op_type for node in graph.node]
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= set(ops)
    assert "BatchNormalization" not in ops
    stored = {i.name: to_array(i) for i in graph.initializer}
    (kernel,) = (a for a in stored.values() if a.dtype == np.int8 and a.shape == (4, 2, 3, 3))
    # Symmetric: in every channel the largest entry is 127, however small the channel is.
    assert (abs(kernel.astype(int)).max(axis=(1, 2, 3)) == 127).all()
    assert network.conv.weight.abs().amax((1, 2, 3)).max() > 100 * (
        network.conv.weight.abs().amax((1, 2, 3)).min()
    )


def test_one_scale_for_a_weight_is_that_of_its_largest_channel(
    inputs: torch.Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network, file = Network().eval(), tmp_path / "a.onnx"
    model = build_export(network, (inputs[:2],)).model
    quantise(model, feeds(inputs), file, per_channel=False)
    stored = {i.name: to_array(i) for i in onnx.load(file).graph.initializer}
    (name,) = (n for n, a in stored.items() if a.dtype == np.int8 and a.shape == (4, 2, 3, 3))
    assert stored[name.removesuffix("_quantized") + "_scale"].size == 1
    sizes = abs(stored[name].astype(int)).max(axis=(1, 2, 3))
    # Channels of 10 and of 0.01: the smallest has no step of its own left.
    assert sizes[2] == 127 and sizes[3] == 0


def test_outputs_are_off_by_steps_of_int8(
    written: tuple[nn.Module, Path], inputs: torch.Tensor
) -> None:
    """A tensor of range r has steps of r / 255; four roundings on the way, and their weights'."""
    network, file = written
    with torch.no_grad():
        wanted = network(inputs).numpy()
    (found,) = ArraySession(file, resolve_device("cpu"), unsaturated=True)(
        {"x": inputs.numpy()}
    ).values()
    spread = wanted.max() - wanted.min()
    error = abs(found - wanted).max()
    assert 0 < error < 8 * spread / 255


def test_unsaturated_is_what_the_file_means(
    written: tuple[nn.Module, Path], inputs: torch.Tensor
) -> None:
    """Without the runtime's fusions each node is computed in float32, on every processor.

    Both add whole numbers that float32 holds, so they differ where one step is rounded otherwise.
    """
    network, file = written
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (meant,) = plain.run(None, {"x": inputs.numpy()})
    runner = ArraySession(file, resolve_device("cpu"), unsaturated=True)
    (found,) = runner({"x": inputs.numpy()}).values()
    with torch.no_grad():
        spread = float(np.ptp(network(inputs).numpy()))
    assert abs(found - meant).max() <= 1.001 * spread / 255


@pytest.mark.parametrize("case", ["beta", "tied", "tied convolutions"])
def test_scales_belong_to_the_channels_and_betas_of_their_reader(case: str, tmp_path: Path) -> None:
    """Beta was lost, and tied weights were read by the scales of the wrong channels.

    A tensor that spreads over 8 of its standard deviations is off by 8 / 255 / sqrt(12), 1%, of one
    where it is rounded, and three are, with their weights. What was wrong was off by a quarter.
    """
    torch.manual_seed(0)
    network: nn.Module = Halved() if case == "beta" else Tied((3, 3) if "conv" in case else ())
    x = torch.randn({"beta": (64, 16), "tied": (64, 8)}.get(case, (64, 8, 5, 5)))
    file = tmp_path / "a.onnx"
    quantise(build_export(network.eval(), (x[:2],)).model, feeds(x), file)
    with torch.no_grad():
        wanted = network.double()(x.double()).numpy()
    (found,) = ArraySession(file, resolve_device("cpu"), unsaturated=True)(
        {"x": x.numpy()}
    ).values()
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)


def test_ranges_of_other_inputs_are_seen_in_the_error(
    written: tuple[nn.Module, Path], inputs: torch.Tensor, tmp_path: Path
) -> None:
    """The measure can fail: calibrated on inputs a tenth as large, values are cut off."""
    network, _ = written
    file = tmp_path / "b.onnx"
    quantise(build_export(network, (inputs[:2],)).model, feeds(0.1 * inputs), file)
    with torch.no_grad():
        wanted = network(inputs).numpy()
    (found,) = ArraySession(file, resolve_device("cpu"), unsaturated=True)(
        {"x": inputs.numpy()}
    ).values()
    assert abs(found - wanted).max() > 16 * (wanted.max() - wanted.min()) / 255


def test_a_missing_runtime_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "onnxruntime" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(InputError, match=r"onnxruntime, which is not installed; install it with"):
        quantise(onnx.ModelProto(), [], tmp_path / "a.onnx")


def test_what_cannot_be_quantised_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot quantise the model to int8"):
        quantise(onnx.ModelProto(), [], tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


class Pooled(nn.Module):
    """On an odd size the last windows of the pool reach over the end."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.pool = nn.AvgPool2d(3, 2, padding=padding, ceil_mode=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.pool(self.conv(x))
        return found


class TurnedNorm(nn.Module):
    """A layer norm of mean - x, which the runtime's fusion takes for one of x - mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        away = x.mean(-1, keepdim=True) - x
        norm = away / torch.sqrt((away**2).mean(-1, keepdim=True) + 1e-5)
        found: torch.Tensor = self.last(norm * torch.linspace(0.5, 2, 8) + torch.linspace(-1, 1, 8))
        return found


def test_the_last_windows_of_a_pool_divide_by_the_cells_that_are_there(tmp_path: Path) -> None:
    """Edges had half of the value and the corner a quarter."""
    torch.manual_seed(0)
    network, x = Pooled().eval(), torch.rand(64, 2, 6, 6) + 1
    quantise(build_export(network, (x[:2],)).model, feeds(x), tmp_path / "a.onnx")
    with torch.no_grad():
        wanted = network(x).numpy()
    runner = ArraySession(tmp_path / "a.onnx", resolve_device("cpu"), unsaturated=True)
    (found,) = runner({"x": x.numpy()}).values()
    assert abs(found - wanted).max() < 8 * np.ptp(wanted) / 255


def test_a_padded_pool_that_rounds_up_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.rand(4, 2, 6, 6)
    quantise(build_export(Pooled(1).eval(), (x[:2],)).model, feeds(x), tmp_path / "a.onnx")
    assert "divides its last windows by cells that do not exist" in caplog.text


def test_no_optimisation_of_another_function_is_in_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file had the norm with its sign turned around: its outputs went against the model's."""
    torch.manual_seed(0)
    network, x = TurnedNorm().eval(), torch.randn(64, 8)
    quantise(build_export(network, (x[:2],), opset=18).model, feeds(x), tmp_path / "a.onnx")
    assert "onnxruntime makes another function of the model" in caplog.text
    with torch.no_grad():
        wanted = network(x).numpy()
    (found,) = unoptimised(tmp_path / "a.onnx")({"x": x.numpy()})
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    ("other", "near"),
    [
        ([[1.0, 2.0]], True),
        ([[1.0, 2.0006]], True),
        ([[1.0, 2.001]], False),
        ([[1.0, np.nan]], False),
        ([[1.0]], False),
        ([[1.0, 2.0, 3.0]], False),
    ],
)
def test_near_is_half_of_the_digits_in_every_entry(other: list[list[float]], near: bool) -> None:
    """The square root of float32's 1.2e-7 is 3.5e-4 of the largest entry."""
    one = np.array([[1.0, 2.0]], np.float32)
    assert _near(one, np.array(other, np.float32)) is near


def test_a_graph_that_means_the_same_is_optimised_without_a_word(
    written: tuple[nn.Module, Path], inputs: torch.Tensor, tmp_path: Path, caplog: Any
) -> None:
    network, _ = written
    quantise(build_export(network, (inputs[:2],)).model, feeds(inputs), tmp_path / "a.onnx")
    assert not [record for record in caplog.records if record.name == "opdf_compile"]
