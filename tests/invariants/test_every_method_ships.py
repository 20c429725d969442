"""Every method on real architectures: trained, folded, exported, verified against the untouched.

Weight-only methods train in `Overparam`, branches as modules. All of it is slow, and asked for by
`make test-all`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sites import Stack, stirred
from torch import nn

import opdf_compile as opdf
from opdf_compile.io.torchvision_shim import prepare_torchvision
from opdf_compile.parametrizations import branch_forms, registered_names

pytestmark = pytest.mark.slow

RATE = 1e-3


def _timm(name: str, **options: Any) -> nn.Module:
    prepare_torchvision()
    import timm

    made: nn.Module = stirred(timm.create_model(name, num_classes=10, **options))
    return made


def _bert() -> nn.Module:
    prepare_torchvision()
    from transformers import BertConfig, BertModel

    config = BertConfig(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=2,
        intermediate_size=128,
        vocab_size=200,
    )
    return BertModel(config, add_pooling_layer=False)


def _image(size: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(4, 3, size, size)}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, torch.Tensor]]]] = {
    "resnet18": (lambda: _timm("resnet18", channels=(16, 32, 48, 64)), lambda: _image(64)),
    "mobilenetv3": (lambda: _timm("mobilenetv3_small_050"), lambda: _image(64)),
    "stack": (lambda: stirred(Stack(channels=16, depth=8)), lambda: _image(16)),
    "bert": (_bert, lambda: {"input_ids": torch.randint(0, 200, (4, 16))}),
}

WEIGHTS = [(name, model) for name in registered_names() for model in ("bert", "mobilenetv3")]
BRANCHES = [
    (name, model) for name in branch_forms() for model in ("resnet18", "mobilenetv3", "stack")
]
# Where a method has nothing to do: kernels only, or depthwise kernels of five taps or more.
NOTHING = {
    *((name, "bert") for name in ("do_conv", "orepa", "repopt")),
    ("dilated", "resnet18"),
    ("dilated", "stack"),
}


def _first(output: Any) -> torch.Tensor:
    found: torch.Tensor = (
        output if isinstance(output, torch.Tensor) else next(iter(output.values()))
    )
    return found


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: dict[str, Any]) -> None:
    model.train()
    for seed in range(3):
        torch.manual_seed(seed)
        out = _first(model(**inputs))
        (out - torch.randn(out.shape)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("name", "kind"), [*WEIGHTS, *BRANCHES])
def test_structure_and_numbers_after_training(name: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, example = MODELS[kind]
    untouched, inputs = build(), example()
    traced = opdf.trace(untouched, inputs)
    if (name, kind) in NOTHING:
        with pytest.raises(opdf.UserError, match="no weight is left to plan"):
            opdf.plan(traced, parametrization=name)
        return
    plan = opdf.plan(traced, parametrization=name)
    if plan.sites:
        training: nn.Module = opdf.branch(untouched, plan)
        _train(training, torch.optim.AdamW(training.parameters(), lr=RATE), inputs)
        wanted = training
        student = opdf.fold(training)
    else:
        training = copy.deepcopy(untouched)
        own = plan.made_for(training)
        optimizer = opdf.Overparam(training, torch.optim.AdamW, plan=own, lr=RATE, weight_decay=0.0)
        _train(training, optimizer, inputs)
        wanted = training
        student = opdf.fold(optimizer)
    with torch.no_grad():
        trained, folded = _first(wanted.eval()(**inputs)), _first(student.eval()(**inputs))
        before = _first(untouched.eval()(**inputs))
    # Float32 sums of some thousand terms, a dozen layers deep.
    torch.testing.assert_close(folded, trained, rtol=1e-4, atol=1e-4 * float(trained.abs().max()))
    assert not torch.allclose(before, trained, rtol=1e-3, atol=1e-3 * float(trained.abs().max()))
    assert type(student) is type(untouched)
    assert list(student.state_dict()) == list(untouched.state_dict())
    opdf.export_onnx(student, inputs, tmp_path / "bundle", reference=untouched)
    report = opdf.verify(tmp_path / "bundle", only="structure,numerics")
    assert report.structure.verdict == report.numerics.verdict == "pass"
