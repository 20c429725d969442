"""Students of timm that carry branches: folded by graph, proven, and told from wrong folds."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from branched_models import stirred
from torch import nn
from torch.fx import GraphModule

import opdf_compile as opdf
from opdf_compile.foreign.folding import FoldedModel
from opdf_compile.io.models.spec import load_model
from opdf_compile.passes.fold_branches import BranchFold, FoldBranches

pytestmark = pytest.mark.slow

# Regions that fold, operations before and after.
STUDENTS = {
    "mobileone_s0": (43, 676, 90),
    "fastvit_t8": (20, 280, 127),
    "repvit_m0_9": (24, 380, 258),
    "repghostnet_050": (32, 322, 226),
}
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def student(name: str) -> nn.Module:
    """Random weights, norms as after training, and signals that neither die nor explode."""
    model = stirred(load_model(f"timm:{name}?num_classes=10").model)  # type: ignore[arg-type]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(0.5)
        for key, parameter in model.named_parameters():
            if key.endswith(("gamma", "layer_scale")):  # At their start they hide what they scale.
                parameter.fill_(0.5)
    return model


def without_a_branch(model: nn.Module, fold: BranchFold) -> GraphModule:
    """The model folded by somebody who forgets one branch: the last norm of a region."""
    norms = [key.rpartition(".")[0] for key in fold.replaced if key.endswith(".running_mean")]
    damaged = copy.deepcopy(model)
    norm = damaged.get_submodule(norms[-1])
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.zero_()
    graph = opdf.trace(damaged, (X,), phases=("eval",)).graphs["eval"]
    return FoldBranches()(graph).module


@pytest.fixture(scope="module", params=STUDENTS)
def files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, FoldedModel]:
    """student.onnx, damaged.onnx, and the folded untouched student as reference.onnx."""
    folder, name = tmp_path_factory.mktemp(request.param), request.param
    model = student(name)
    folded = opdf.fold_model(model, (X,), by="graph")
    folded.save(folder / "reference.onnx")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=generator))
    folded = opdf.fold_model(model, (X,), by="graph")
    folded.save(folder / "student.onnx")
    wrong = without_a_branch(model, folded.folds[-1])
    with torch.no_grad():
        for key, tensor in folded.program.state_dict.items():
            tensor.copy_(dict(wrong.state_dict())[key])
    folded.save(folder / "damaged.onnx")
    opdf.export_onnx(model, (X,), folder / "stub.onnx")
    shutil.copyfile(folder / "student.check.npz", folder / "stub.check.npz")
    return name, folder, folded


def judged(folder: Path, candidate: str) -> opdf.ParityReport:
    files = (folder / f"{candidate}.onnx", folder / "reference.onnx")
    return opdf.verify(*files, only="structure,numerics", device="cpu")


def test_a_right_fold_passes_and_wrong_ones_are_refuted(
    files: tuple[str, Path, FoldedModel],
) -> None:
    name, folder, folded = files
    assert (len(folded.folds), *folded.operations) == STUDENTS[name]
    right, damaged, stub = (judged(folder, file) for file in ("student", "damaged", "stub"))
    assert (right.structure.verdict, right.numerics.verdict) == ("pass", "pass")
    assert (damaged.structure.verdict, damaged.numerics.verdict) == ("pass", "fail")
    assert stub.verdict == "fail"
    assert "the fold did not happen: stub.onnx still holds" in stub.structure.differences[0]


@pytest.mark.parametrize("name", STUDENTS)
def test_in_float64_both_ways_are_the_unfolded_function(name: str) -> None:
    model, x = student(name).double(), X.double()
    folded = opdf.fold_model(model, (x,))
    # timm's fuse makes layers of float32, whatever the model is: that one does not run.
    assert folded.by == ("graph" if name == "repvit_m0_9" else "method")
    assert bool(folded.notes) == (folded.by == "graph")
    by_graph = opdf.fold_model(model, (x,), by="graph")
    with torch.no_grad():
        wanted = model(x)
        for one in (folded, by_graph):
            found = one.program.module(check_guards=False)(x)
            assert float((found - wanted).abs().max()) <= 1e-12 * max(1.0, wanted.abs().max())


def test_adapters_of_peft() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["0", "2"], r=2)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    x = torch.randn(3, 6)
    by_method = opdf.fold_model(model, (x,), by="method")
    assert sorted(by_method.state) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    by_graph = opdf.fold_model(model, (x,), by="graph")
    assert [(fold.branches, fold.layers) for fold in by_graph.folds] == [(2, 3), (2, 3)]
