"""A zero padding in front of a max-pool survives ONNX Runtime's own optimisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import opdf_compile as opdf


class Stem(nn.Module):
    """The stem of a pre-activation ResNet: what is padded and pooled may be negative."""

    def __init__(self, value: float = 0.0, *, ceil: bool = False, half: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.value, self.ceil, self.half = value, ceil, half
        # Every output of the convolution is negative, so each border decides a maximum.
        nn.init.constant_(self.conv.bias, -50.0)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(self.conv(x), (1, 1, 1, 1), value=self.value)
        return F.max_pool2d(padded.half() if self.half else padded, 3, 2, ceil_mode=self.ceil)


def run(path: Path, x: Tensor, *, optimised: bool) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stem, Path]:
    """A stem and its file; nobody changes them."""
    stem, x = Stem().eval(), torch.randn(2, 3, 9, 9)
    return stem, opdf.export_onnx(stem, (x,), tmp_path_factory.mktemp("stem") / "stem.onnx")


def test_the_runtime_computes_the_padding_that_was_asked_for(exported: tuple[Stem, Path]):
    require_padded(*exported)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stem", [Stem(half=True), Stem(ceil=True), Stem(value=-float("inf")), Stem(value=2.0)]
)
def test_so_it_does_of_other_paddings(stem: Stem, tmp_path: Path):
    x = torch.randn(2, 3, 9, 9)
    require_padded(stem.eval(), opdf.export_onnx(stem.eval(), (x,), tmp_path / "stem.onnx"))


def require_padded(stem: Stem, path: Path) -> None:
    x = torch.randn(2, 3, 9, 9)
    wanted = stem(x).detach().numpy()
    for optimised in (False, True):
        found = run(path, x, optimised=optimised)
        np.testing.assert_allclose(found, wanted, rtol=2e-3 if stem.half else 1e-5, atol=1e-5)


def test_the_runtime_would_have_computed_another_result(
    exported: tuple[Stem, Path], tmp_path: Path
):
    """Without the axes the same file is wrong: the check above checks something."""
    stem, x = exported[0], torch.randn(2, 3, 9, 9)
    path = tmp_path / "stem.onnx"
    model = onnx.load(exported[1])
    (pad,) = [node for node in model.graph.node if node.op_type == "Pad"]
    assert len(pad.input) == 4
    del pad.input[3]
    onnx.save(model, path)
    wanted = stem(x).detach().numpy()
    np.testing.assert_allclose(run(path, x, optimised=False), wanted, rtol=1e-5)
    # The runtime may mend this one day; then this test goes, and with it onnx_padding.py.
    assert np.abs(run(path, x, optimised=True) - wanted).max() > 1.0


def test_a_padding_that_no_max_pool_reads_is_left_as_it_was(tmp_path: Path):
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.pad(x, (1, 1, 1, 1)))

    path = opdf.export_onnx(Padded().eval(), (torch.randn(2, 3, 9, 9),), tmp_path / "x.onnx")
    pads = [node for node in onnx.load(path).graph.node if node.op_type == "Pad"]
    assert all(len(node.input) <= 3 for node in pads)


@pytest.mark.slow
def test_padded_students_have_parity(tmp_path: Path):
    untouched, student, x = Stem().eval(), Stem().eval(), torch.randn(2, 3, 9, 9)
    opdf.export_onnx(student, (x,), tmp_path / "out", reference=untouched)
    assert opdf.verify(tmp_path / "out", only="structure,numerics")
