"""Students of timm, trained with branches and folded: the export is that of the untouched one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import opdf_compile as opdf
from opdf_compile.io.torchvision_shim import prepare_torchvision

# Random weights, 64 x 64 pixels. Sums over some thousand taps and tens of layers, in float64.
CLOSE = 1e-12


def trained(plain: nn.Module, x: torch.Tensor, form: str) -> Any:
    plan = opdf.plan(opdf.trace(plain, (x,)), parametrization=form)
    training = opdf.branch(plain, plan)
    assert torch.equal(training.eval()(x), plain.eval()(x))
    inner = torch.optim.AdamW(training.train().parameters(), lr=1e-3)
    for _step in range(2):
        inner.zero_grad()
        training(x).square().mean().backward()
        inner.step()
    return training.eval()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["repvgg", "dbb"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_structure_and_numerics_pass_after_training(name: str, form: str, tmp_path: Path) -> None:
    prepare_torchvision()
    import timm

    torch.manual_seed(0)
    plain = timm.create_model(name, pretrained=False, num_classes=10)
    untouched = copy.deepcopy(plain)
    x = torch.randn(4, 3, 64, 64)
    training = trained(plain, x, form)
    folded = opdf.fold(training)
    assert [type(m) for m in folded.modules()] == [type(m) for m in untouched.modules()]
    assert list(folded.state_dict()) == list(untouched.state_dict())
    with torch.no_grad():
        exact = opdf.fold(copy.deepcopy(training).double())
        wanted = training.double()(x.double())
        error = (exact(x.double()) - wanted).abs().max() / wanted.abs().max()
    assert error < CLOSE
    opdf.export_onnx(folded, (x,), tmp_path / "bundle", reference=untouched)
    report = opdf.verify(tmp_path / "bundle", only="structure,numerics", device="cpu")
    assert report.structure.verdict == "pass", report
    assert report.numerics.verdict == "pass", report
