"""A plan of many rules through every form: branches, cores of several kinds, none, side by side.

What each does alone is tested where it is; here they must leave each other alone.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.io.saved.expanded_file import fold_file, save_expanded


class Student(nn.Module):
    """Two sites, three matrices, two of them tied, and a matrix that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.first, self.second = nn.Linear(64, 16), nn.Linear(16, 16)
        self.third, self.head = nn.Linear(16, 16), nn.Linear(16, 10)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(self.body(self.stem(x)).flatten(1)))
        return self.head(self.third(torch.tanh(self.second(hidden))))


X = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
CORES = {"body.*": "do_conv", "first.*": "gains", "third.*": "spectral(rank=2)", "head.*": "none"}
SITES = {"stem.*": "repvgg", **CORES}
KINDS = {"body.0.weight": "do_conv", "first.weight": "gains", "second.weight": "spectral"}


def student() -> Student:
    torch.manual_seed(0)
    return Student().double()


@pytest.fixture(scope="module")
def traced() -> opdf.Traced:
    return opdf.trace(student(), (X,))


def train(model: Any, optimizer: Any, steps: int = 3) -> None:
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


def by(plan: opdf.Plan) -> dict[str, str]:
    return {entry.key: entry.parametrization for entry in plan.entries}


@pytest.mark.parametrize("batched", [False, True])
def test_both_forms_train_alike(traced: opdf.Traced, batched: bool) -> None:
    """Momentum and one rate, apart from the thin factors' own, which the plan says."""
    plan = opdf.plan(traced, rules=CORES, parametrization="mpo", min_size=1)
    assert by(plan) == {"stem.0.weight": "mpo", **KINDS}
    inline, model = opdf.expand(traced, plan), student()
    rates = {
        name: rate
        for entry in plan.entries
        for name, rate in zip(entry.core_names, entry.rates, strict=True)
    }
    groups = [
        {"params": [p], "lr": 0.05 * rates.get(name, 1.0)} for name, p in inline.named_parameters()
    ]
    train(inline, torch.optim.SGD(groups, momentum=0.9))
    hoisted = opdf.Overparam(
        model, torch.optim.SGD, plan=plan, lr=0.05, momentum=0.9, batched=batched
    )
    train(model, hoisted)
    one, other = opdf.fold(inline).state_dict(), opdf.fold(hoisted).state_dict()
    for key, value in student().state_dict().items():
        torch.testing.assert_close(one[key], other[key], rtol=1e-9, atol=1e-10)
        if value.ndim > 1:
            assert not torch.equal(one[key], value), "also the head's, which stays plain"


def trained(traced: opdf.Traced) -> opdf.Expanded:
    plan = opdf.plan(traced, rules=SITES, min_size=1)
    assert ([site.key for site in plan.sites], by(plan)) == (["stem.0.weight"], KINDS)
    inline = opdf.expand(traced, plan)
    train(inline, torch.optim.SGD(inline.parameters(), lr=0.05))
    return inline


def test_branches_and_cores_train_and_fold(traced: opdf.Traced) -> None:
    inline = trained(traced)
    wanted = inline.eval()(X)
    folded = opdf.fold(inline)
    assert isinstance(folded, Student) and folded.third.weight is folded.second.weight
    torch.testing.assert_close(folded.eval()(X), wanted, rtol=1e-12, atol=1e-12)
    assert (wanted - traced.source.eval()(X)).abs().max() > 1e-3, "the control"


@pytest.mark.slow
def test_files(traced: opdf.Traced, tmp_path: Path) -> None:
    inline = trained(traced)
    folded = opdf.fold(inline)
    assert isinstance(folded, Student)
    for kind in ("pt2", "safetensors"):
        save_expanded(inline, tmp_path / f"trained.{kind}")
        state = fold_file(tmp_path / f"trained.{kind}").state
        assert set(state) == set(folded.state_dict())
        for key, value in folded.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-12, atol=1e-13)


def test_branches_cores_and_a_metric_under_one_optimizer_resume_bit_for_bit(
    traced: opdf.Traced, tmp_path: Path
) -> None:
    rules = {**SITES, "body.*": "hyperball"}
    plan = opdf.plan(traced, rules=rules, min_size=1)
    runs = []
    for interrupted in (False, True):
        model = opdf.branch(student(), plan)
        opt = opdf.Overparam(model, torch.optim.AdamW, plan=plan, lr=0.01)
        train(model, opt, 2)
        if interrupted:
            opdf.save_checkpoint(tmp_path / "run", opt, step=2)
            torch.manual_seed(9)
            model = opdf.branch(Student().double(), plan)
            opt = opdf.Overparam(model, torch.optim.AdamW, plan=plan, lr=0.5)
            found = opdf.latest_checkpoint(tmp_path / "run")
            assert found is not None
            opdf.load_checkpoint(found, opt)
        train(model, opt, 2)
        runs.append(copy.deepcopy(opdf.fold(opt).state_dict()))
    assert all(torch.equal(value, runs[1][key]) for key, value in runs[0].items())
    start = student().state_dict()
    assert set(runs[0]) == set(start)
    norms = [state["body.0.weight"].norm() for state in (runs[0], start)]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-12, atol=0)
    assert not torch.equal(runs[0]["body.0.weight"], start["body.0.weight"])


@pytest.mark.slow
def test_what_is_exported_is_the_untouched_students_graph(
    traced: opdf.Traced, tmp_path: Path
) -> None:
    folded, x = opdf.fold(trained(traced)), X.float()
    assert isinstance(folded, nn.Module)
    bundle = f"{tmp_path}/bundle/"
    opdf.export_onnx(folded.float().eval(), (x,), bundle, reference=student().float().eval())
    report = opdf.verify(bundle, only=("structure", "numerics"))
    assert report, str(report)
