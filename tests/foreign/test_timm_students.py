"""Students of timm that carry branches: folded by graph, proven, and told from wrong folds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from branched_models import stirred
from torch import nn

import opdf_compile as opdf
from opdf_compile.foreign.folding import FoldedModel
from opdf_compile.foreign.methods import deployed
from opdf_compile.io.models.spec import load_model

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
    """Random weights, norms as after training, and signals that keep their size."""
    model = stirred(load_model(f"timm:{name}?num_classes=10").model)  # type: ignore[arg-type]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(0.5)
    return model


def trained(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=STUDENTS)
def files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, FoldedModel]:
    """student.onnx, the folded untouched reference.onnx, and unfolded.onnx."""
    folder, name = tmp_path_factory.mktemp(request.param), request.param
    opdf.fold_model(student(name), (X,), by="graph").save(folder / "reference.onnx")
    model = trained(student(name))
    folded = opdf.fold_model(model, (X,), by="graph")
    folded.save(folder / "student.onnx")
    opdf.export_onnx(model, (X,), folder / "unfolded.onnx")
    return name, folder, folded


def test_folded_by_graph_and_verified(files: tuple[str, Path, FoldedModel]) -> None:
    name, folder, folded = files
    assert (len(folded.folds), *folded.operations) == STUDENTS[name]
    report = opdf.verify(
        folder / "student.onnx",
        folder / "reference.onnx",
        only="structure,numerics",
        device="cpu",
    )
    assert (report.structure.verdict, report.numerics.verdict) == ("pass", "pass")


def test_a_forgotten_branch_is_refuted(files: tuple[str, Path, FoldedModel]) -> None:
    name, folder, folded = files
    # The norm of the input alone is the branch that authors forget; here a tenth of it.
    region = next(fold for fold in folded.folds if fold.branches > fold.layers)
    weight = folded.program.state_dict[region.key]
    kept = weight.detach().clone()
    middle = tuple(size // 2 for size in weight.shape[2:])
    with torch.no_grad():
        weight[(slice(None), 0, *middle)] -= 0.1
        folded.save(folder / "damaged.onnx")
        weight.copy_(kept)
    report = opdf.verify(
        folder / "damaged.onnx",
        folder / "reference.onnx",
        only="structure,numerics",
        device="cpu",
    )
    assert (report.structure.verdict, report.numerics.verdict) == ("pass", "fail")


def test_a_stub_is_refuted(files: tuple[str, Path, FoldedModel]) -> None:
    _, folder, _ = files
    shutil.copyfile(folder / "unfolded.onnx", folder / "stub.onnx")
    shutil.copyfile(folder / "student.check.npz", folder / "stub.check.npz")
    report = opdf.verify(
        folder / "stub.onnx", folder / "reference.onnx", only="structure,numerics", device="cpu"
    )
    assert report.verdict == "fail"
    assert "the fold did not happen: stub.onnx still holds" in report.structure.differences[0]


@pytest.mark.parametrize("name", STUDENTS)
def test_in_float64_both_ways_are_the_unfolded_function(name: str) -> None:
    model, x = student(name).double(), X.double()
    by_graph = opdf.fold_model(model, (x,), by="graph").program.module(check_guards=False)
    by_method, _ = deployed(model)
    with torch.no_grad():
        wanted = model(x)
        scale = float(wanted.abs().max())
        for folded in (by_graph, by_method):
            assert float((folded(x) - wanted).abs().max()) <= 1e-12 * max(1.0, scale)


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
