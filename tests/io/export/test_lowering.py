"""Older opsets: valid, of the same bits, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.artefacts.record import recorded_parameters
from opdf_compile.errors import ExportError
from opdf_compile.io.export import lowering
from opdf_compile.io.export.exporting import export_onnx


class Images(nn.Module):
    """Reductions, a norm, a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(x.mean((2, 3)) + x.amax((2, 3))) - x.flatten(1).amin(1, keepdim=True)


class Parts(nn.Module):
    """Equal parts, and a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.norm(x).chunk(3, -1)
        return self.head(F.gelu(first) * torch.softmax(second, -1) + third)


class Packed(nn.Module):
    """Equal parts of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.weight.chunk(3)
        return x @ first.t() - (x @ second.t()) * (x @ third.t())


class Function(nn.Module):
    """One function of one input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def run(path: Path, x: Tensor) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize(
    ("make", "shape", "opset", "format_"),
    [
        # The steps down to 13 are those down to 17, and more.
        pytest.param(Images, (2, 3, 8, 8), 17, 8, marks=pytest.mark.slow),
        (Images, (2, 3, 8, 8), 13, 7),
        (Parts, (2, 5, 12), 17, 8),
        (Packed, (2, 4), 17, 8),
    ],
)
def test_an_older_opset_is_the_same_model(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    opset: int,
    format_: int,
    tmp_path: Path,
) -> None:
    net, x = make().eval(), torch.randn(shape)
    # Of one net beside an untouched one, whose structure must come out equal.
    bundled = make is Images
    given = {"reference": make().eval()} if bundled else {}
    made = export_onnx(net, (x,), tmp_path / ("b" if bundled else "b.onnx"), opset=opset, **given)
    file = made / "student.onnx" if bundled else made
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == opset and model.ir_version == format_
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    assert len(recorded_parameters(model, "m") or ()) == len(list(net.named_parameters())) + 2 * (
        make is Images
    )
    for size in (1, 3):
        found = run(file, x[:1].expand(size, *x.shape[1:]).contiguous())
        wanted = net(x[:1]).detach().numpy()
        np.testing.assert_allclose(found, np.repeat(wanted, size, 0), atol=1e-5)
    assert opdf.verify(made, only="structure,numerics" if bundled else "numerics")


@pytest.mark.parametrize(
    ("function", "opset", "sentence"),
    [
        pytest.param(
            F.mish, 17, "opset 17 was asked for and has no Mish.*; give 18 or more", id="operator"
        ),
        pytest.param(
            lambda x: F.layer_norm(F.hardswish(x), (8,)),
            13,
            "opset 13 was asked for and has no HardSwish, LayerNormalization.*; give 17 or more",
            id="two operators",
        ),
        pytest.param(
            lambda x: F.max_pool1d(F.pad(x, (1, 1)), 3),
            17,
            "pads with named axes, which keeps ONNX Runtime from a wrong padding",
            id="padding",
        ),
        pytest.param(
            lambda x: x + x.new_tensor(range(x.shape[0]))[:, None, None],
            12,
            "opset 12 was asked for, wanted 13 to",
            id="below the lowest",
        ),
    ],
)
def test_what_cannot_be_said_is_refused(
    function: Callable[[Tensor], Tensor], opset: int, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=sentence):
        export_onnx(Function(function), (torch.randn(2, 4, 8),), tmp_path / "m.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_other_bits_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A step that changes the meaning and leaves a valid file."""
    right = lowering._axes_as_attribute

    def wrong(node: ir.Node, opset: int) -> None:
        right(node, opset)
        node.attributes["axes"] = ir.AttrInt64s("axes", [2])

    monkeypatch.setattr(lowering, "_axes_as_attribute", wrong)
    net = Function(lambda x: x.mean(1))
    with pytest.raises(ExportError, match="computes another output, wanted the same bits"):
        export_onnx(net, (torch.randn(2, 4, 4),), tmp_path / "m.onnx", opset=17)


def test_an_invalid_result_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What nobody has said in the older words yet."""
    monkeypatch.setattr(lowering, "_axes_as_attribute", lambda node, opset: None)
    net = Function(lambda x: x.mean(1))
    with pytest.raises(ExportError, match="opset 17 was asked for and cannot say the model"):
        export_onnx(net, (torch.randn(2, 4, 4),), tmp_path / "m.onnx", opset=17)
