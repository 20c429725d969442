"""Weights that are stored as the graph reads them, and those that must not be."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from quick import quick
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.artefacts.record import recorded_parameters
from opdf_compile.io.export.exporting import export_onnx


class Tied(nn.Module):
    """A head that reads the embedding's table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids) @ self.table.weight.T


class Experts(nn.Module):
    """A stack of weights, read with its last two axes swapped; another one permuted otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 5, 4))
        self.down = nn.Parameter(torch.randn(2, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.up.mT @ self.down.permute(1, 2, 0)


class Shared(nn.Module):
    """One weight in two products."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def stored(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def run(path: Path, *inputs: Tensor) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize("dtype", quick([None, "fp16"], {None}))
def test_a_linear_is_a_product_with_a_stored_weight(dtype: str | None, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(2, 5, 6)
    path = export_onnx(net, (x,), tmp_path / "m.onnx", dtype=dtype)
    assert operators(path) == {"MatMul": 2, "Add": 2, "Relu": 1}
    wanted = net[0].weight.detach().numpy().T
    assert stored(path)["0.weight.T"].shape == (6, 8)
    np.testing.assert_allclose(stored(path)["0.weight.T"], wanted, rtol=2**-11 if dtype else 0)
    names = {"0.weight.T", "0.bias", "2.weight.T", "2.bias"}
    assert recorded_parameters(onnx.load(path), "m") == names
    if dtype is None:
        np.testing.assert_allclose(run(path, x), net(x).detach().numpy(), atol=1e-6)


def test_a_weight_with_two_readers_of_one_kind_is_stored_once(tmp_path: Path) -> None:
    net, x = Shared().eval(), torch.randn(2, 3, 4)
    path = export_onnx(net, (x,), tmp_path / "m.onnx")
    assert operators(path)["Transpose"] == 0 and set(stored(path)) == {
        "layer.weight.T",
        "layer.bias",
    }
    np.testing.assert_allclose(run(path, x), net(x).detach().numpy(), atol=1e-6)


def test_a_tied_table_stays_one_tensor(tmp_path: Path) -> None:
    net, ids = Tied().eval(), torch.randint(0, 9, (2, 3))
    path = export_onnx(net, (ids,), tmp_path / "m.onnx")
    assert operators(path)["Transpose"] == 1 and set(stored(path)) == {"table.weight"}
    np.testing.assert_allclose(run(path, ids), net(ids).detach().numpy(), atol=1e-6)


def test_a_stack_is_swapped_and_any_other_order_is_left(tmp_path: Path) -> None:
    net, x = Experts().eval(), torch.randn(3, 2, 4)
    path = export_onnx(net, (x,), tmp_path / "m.onnx", dynamic=False)
    assert {name: array.shape for name, array in stored(path).items()} == {
        "up.T": (3, 4, 5),
        "down": (2, 3, 5),
    }
    np.testing.assert_allclose(run(path, x), net(x).detach().numpy(), atol=1e-5)


def test_a_gemm_keeps_its_weight(tmp_path: Path) -> None:
    """On two axes torch's weight is read as it is: the names are those of the state dict."""
    net = nn.Linear(6, 3)
    path = export_onnx(net, (torch.randn(2, 6),), tmp_path / "m.onnx")
    np.testing.assert_array_equal(stored(path)["weight"], net.weight.detach().numpy())


def test_trained_and_untouched_files_stay_equal_in_structure(tmp_path: Path) -> None:
    """A symmetric weight, a zero one: no value may decide how a weight is stored."""
    untouched = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    trained = copy.deepcopy(untouched)
    with torch.no_grad():
        trained[0].weight.copy_(torch.eye(4))
        trained[1].weight.zero_()
    x = torch.randn(2, 3, 4)
    export_onnx(trained, (x,), tmp_path / "b", reference=untouched)
    assert opdf.verify(tmp_path / "b", only="structure,numerics")


def test_an_exported_file_is_a_student_with_those_weights(tmp_path: Path) -> None:
    """ONNX in, ONNX out: a plan takes the stored weights, and the fold gives the file back."""
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)).eval()
    x = torch.randn(2, 3, 8)
    path = export_onnx(net, (x,), tmp_path / "m.onnx")
    student = opdf.load_onnx(path)
    assert [row.key for row in student.weight_rows()] == ["0.weight.T", "2.weight.T"]
    traced = opdf.trace(student, (x,), dynamic=student.dynamic)
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3, min_size=1))
    folded = export_onnx(opdf.fold(expanded), (x,), tmp_path / "folded.onnx")
    assert opdf.verify(folded, path, only="structure,numerics")
    for name, array in stored(path).items():
        np.testing.assert_allclose(stored(folded)[name], array, atol=1e-6)
