"""Branches in files: expanded, trained without this package, folded with and without a plan."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from quick import quick
from safetensors.torch import load_file, save_file
from sites import Stack, batch, steps, stirred
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import ExportError, FoldError
from opdf_compile.io import fold_file, save_expanded
from opdf_compile.training import Expanded

# Sums over 54 taps and a few layers, in float64.
CLOSE = {"rtol": 0.0, "atol": 1e-13}

FORMS = ("repvgg", "dbb")
# A site of dbb is a large program: one shows what a stack of them would.
DEPTH = {"repvgg": 2, "dbb": 1}


def expanded(form: str) -> tuple[nn.Module, Expanded]:
    torch.manual_seed(0)
    plain = stirred(Stack(depth=DEPTH[form])).double()
    traced = opdf.trace(plain, (batch(),))
    return plain, opdf.expand(traced, opdf.plan(traced, parametrization=form))


def run(state: dict[str, Tensor]) -> Tensor:
    student = Stack(depth=sum(name.endswith("running_mean") for name in state)).double().eval()
    student.load_state_dict(state)
    made: Tensor = student(batch())
    return made


@pytest.mark.parametrize(
    ("form", "suffix"),
    [
        ("repvgg", ".pt2"),
        ("dbb", ".safetensors"),
        # Programs with the branches of dbb are folded below.
        pytest.param("dbb", ".pt2", marks=pytest.mark.slow),
        pytest.param("repvgg", ".safetensors", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_is_folded_at_once(tmp_path: Path, form: str, suffix: str) -> None:
    plain, training = expanded(form)
    save_expanded(training, tmp_path / f"expanded{suffix}")
    folded = fold_file(tmp_path / f"expanded{suffix}")
    assert sorted(folded.state) == sorted(plain.state_dict())
    for key, value in plain.state_dict().items():
        assert torch.equal(folded.state[key], value), key


@pytest.fixture(scope="module")
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Tensor]:
    """A folder with an expanded file, what was trained from it, and the output that trained has."""
    folder = tmp_path_factory.mktemp("trained")
    _plain, training = expanded(request.param)
    save_expanded(training, folder / "expanded.pt2")
    program = torch.export.load(folder / "expanded.pt2")
    trained = program.module()
    inner = torch.optim.SGD(trained.parameters(), lr=0.05)
    for seed in range(3):
        inner.zero_grad()
        trained(batch(seed=seed)).square().mean().backward()
        inner.step()
    with torch.no_grad():
        for name, tensor in trained.state_dict().items():
            program.state_dict[name].copy_(tensor)
    torch.export.save(program, folder / "trained.pt2")
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    save_file(state, folder / "trained.safetensors")
    training.load_state_dict(state)
    return folder, training.eval()(batch())


@pytest.mark.parametrize("trained", FORMS, indirect=True)
def test_trained_and_saved_again_without_its_plan(trained: tuple[Path, Tensor]) -> None:
    folder, wanted = trained
    torch.testing.assert_close(run(fold_file(folder / "trained.pt2").state), wanted, **CLOSE)


@pytest.mark.parametrize("trained", quick(FORMS, {"repvgg"}), indirect=True)
def test_what_was_trained_beside_the_file(trained: tuple[Path, Tensor]) -> None:
    folder, wanted = trained
    folded = fold_file(folder / "expanded.pt2", weights=folder / "trained.safetensors")
    torch.testing.assert_close(run(folded.state), wanted, **CLOSE)
    program = fold_file(folder / "expanded.pt2", weights=folder / "trained.pt2").programs["eval"]
    torch.testing.assert_close(program.module()(batch()), wanted, **CLOSE)
    assert not [node for node in program.graph.nodes if "add" in node.name]


ELSEWHERE = """
import sys
sys.modules["opdf_compile"] = None  # An import of it fails.
import torch
from safetensors.torch import save_file

trained = torch.export.load("expanded.pt2").module()
inner = torch.optim.SGD(trained.parameters(), lr=0.05)
for seed in range(3):
    drawn = torch.Generator().manual_seed(seed)
    inner.zero_grad()
    # Another batch than the traced one.
    x = torch.randn(7, 3, 8, 8, generator=drawn, dtype=torch.float64)
    trained(x).square().mean().backward()
    inner.step()
save_file({name: tensor.clone() for name, tensor in trained.state_dict().items()}, "t.safetensors")
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_trained_where_this_package_is_not(tmp_path: Path, form: str) -> None:
    plain, training = expanded(form)
    save_expanded(training, tmp_path / "expanded.pt2")
    subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, check=True)
    training.load_state_dict(load_file(tmp_path / "t.safetensors"))
    folded = fold_file(tmp_path / "expanded.pt2", weights=tmp_path / "t.safetensors")
    wanted = training.eval()(batch())
    torch.testing.assert_close(run(folded.state), wanted, **CLOSE)
    assert not torch.allclose(wanted, plain.eval()(batch()), atol=1e-4)


def test_the_trained_state_alone(tmp_path: Path) -> None:
    _plain, training = expanded("repvgg")
    save_expanded(training, tmp_path / "expanded.safetensors")
    steps(training, [batch(seed=seed) for seed in range(3)])
    wanted = training.eval()(batch())
    save_file(training.state_dict(), tmp_path / "trained.safetensors")
    folded = fold_file(tmp_path / "expanded.safetensors", weights=tmp_path / "trained.safetensors")
    torch.testing.assert_close(run(folded.state), wanted, **CLOSE)
    with pytest.raises(FoldError, match="no plan says where their BatchNorm is"):
        fold_file(tmp_path / "trained.safetensors")


def test_what_was_frozen_stays_frozen(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = stirred(Stack(depth=1)).double()
    plain.body[1].weight.requires_grad_(False)
    traced = opdf.trace(plain, (batch(),))
    training = opdf.expand(traced, opdf.plan(traced, parametrization="repvgg"))
    save_expanded(training, tmp_path / "expanded.pt2")
    program = fold_file(tmp_path / "expanded.pt2").programs["model"]
    flags = {name: p.requires_grad for name, p in program.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in plain.named_parameters()}
    assert not flags["body.1.weight"]


def test_a_branch_that_is_missing(tmp_path: Path) -> None:
    _plain, training = expanded("repvgg")
    save_expanded(training, tmp_path / "expanded.safetensors")
    path = tmp_path / "expanded.safetensors"
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        header = opened.metadata()
    state = load_file(path)
    del state["body.3.weight_branches.point.norm.running_var"]
    save_file(state, path, header)
    with pytest.raises(FoldError, match=r"has no tensor .*point\.norm\.running_var"):
        fold_file(path)


class Branching(nn.Module):
    """A student whose own modules are called as branches are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_branches = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.conv_branches:
            x = layer(x)
        return x


@pytest.mark.parametrize("suffix", [".pt2", ".safetensors"])
def test_names_of_the_students_own(tmp_path: Path, suffix: str) -> None:
    plain = Branching()
    traced = opdf.trace(plain, (torch.randn(2, 16),))
    save_expanded(opdf.expand(traced, opdf.plan(traced, cores=3)), tmp_path / f"expanded{suffix}")
    folded = fold_file(tmp_path / f"expanded{suffix}")
    assert sorted(folded.state) == sorted(plain.state_dict())


@pytest.mark.parametrize("trained", ["repvgg"], indirect=True)
def test_branches_do_not_ship(trained: tuple[Path, Tensor], tmp_path: Path) -> None:
    plain = stirred(Stack()).double()
    plan = opdf.plan(opdf.trace(plain, (batch(),)), parametrization="repvgg")
    with pytest.raises(ExportError, match="has branches beside its convolutions"):
        opdf.export_onnx(opdf.branch(plain, plan), (batch(),), tmp_path / "student.onnx")
    program = torch.export.load(trained[0] / "expanded.pt2")
    with pytest.raises(ExportError, match="the program holds branches"):
        opdf.export_onnx(program, (batch(),), tmp_path / "student.onnx")
    assert not (tmp_path / "student.onnx").exists()
