"""Students that keep what their forward computed: folded, expanded, measured, exported, copied."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import quick
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.graph.sharing import deep_copy

X = torch.linspace(-1.0, 1.0, 64).reshape(8, 8)


class Record:
    """What a user's own code keeps beside the modules."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"all": []}


class Keeping(nn.Module):
    """A student that puts its features where `keep` says."""

    def __init__(self, keep: Callable[[Keeping, Tensor], None] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.features: Any = {}
        self.record = Record()
        self.register_buffer("mean", torch.zeros(16))
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        features = self.net[1](self.net[0](x))
        if self.keep is not None:
            self.keep(self, features)
        result: Tensor = self.net[2](features)
        return result

    def note(self, _module: nn.Module, _args: Any, out: Tensor) -> None:
        self.features["hook"] = out


def _plain(m: Keeping, h: Tensor) -> None:
    m.features = h


def _in_a_list(m: Keeping, h: Tensor) -> None:
    m.features = [h, (h, {"h": h})]


def _in_an_object(m: Keeping, h: Tensor) -> None:
    m.record.seen = {"all": [h]}


def _as_a_buffer(m: Keeping, h: Tensor) -> None:
    m.mean = 0.9 * m.mean + 0.1 * h.mean(0)


def _as_a_call(m: Keeping, h: Tensor) -> None:
    m.features = partial(torch.add, h)


def keeping(how: str) -> Keeping:
    if how == "closure hook":
        model = Keeping(None)
        model.net[0].register_forward_hook(lambda m, a, out: model.features.update(hook=out))
    elif how == "method hook":
        model = Keeping(None)
        model.net[0].register_forward_hook(model.note)
    else:
        model = Keeping(WAYS[how])
    return model


WAYS: dict[str, Callable[[Keeping, Tensor], None] | None] = {
    "attribute": _plain,
    "list": _in_a_list,
    "object": _in_an_object,
    "buffer": _as_a_buffer,
    "partial": _as_a_call,
    "closure hook": None,
    "method hook": None,
}


def trained(how: str) -> tuple[Keeping, opdf.Overparam]:
    model = keeping(how)
    opt = opdf.Overparam(model, torch.optim.SGD, lr=0.01, cores=3)
    model(X).square().mean().backward()
    opt.step()
    return model, opt


@pytest.mark.parametrize("how", WAYS)
def test_what_is_kept_is_in_nobodys_way(how: str) -> None:
    model, opt = trained(how)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    wanted = model(X)
    assert torch.allclose(opdf.fold(opt)(X), wanted, atol=1e-5)
    traced = opdf.trace(model, (X,))
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3))
    assert torch.allclose(opdf.fold(expanded)(X), wanted, atol=1e-5)


@pytest.mark.parametrize("how", quick(["attribute", "object", "method hook"], {"object"}))
def test_a_file_is_written(how: str, tmp_path: Path) -> None:
    model, _opt = trained(how)
    file = opdf.export_onnx(model, (X,), tmp_path / "student.onnx", dtype="fp16")
    assert opdf.verify(file, only="numerics")


def test_a_copy_holds_the_values_without_their_history() -> None:
    model = keeping("list")
    model(X)
    copied = deep_copy(model)
    kept, (again, named) = copied.features
    assert torch.equal(kept, model.features[0])
    assert kept is again and kept is named["h"], "one tensor stays one tensor"
    assert kept.is_leaf and not kept.requires_grad
    assert model.features[0].grad_fn is not None, "the caller's own are as they were"
    kept.zero_()
    assert model.features[0].abs().sum() > 0
    assert copied.net[0].weight.requires_grad and copied.net[0].weight is not model.net[0].weight
