"""One program, two forms: inline and hoisted training go the same way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from quick import quick
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import opdf_compile as opdf

Make = Callable[[Any], Optimizer]
STEPS = 12
OPTIMIZERS: dict[str, Make] = {
    # eps above the noise of gradients that are zero, such as that of a bias before BatchNorm.
    "AdamW": lambda params: AdamW(params, lr=2e-3, weight_decay=0.05, eps=1e-5),
    "SGD": lambda params: SGD(params, lr=5e-2, momentum=0.9),
}
FORMS: dict[str, dict[str, Any]] = {
    "hoisted": {},
    "batched": {"batched": True},
    "recompute": {"recompute": True},
    "batched, recompute": {"batched": True, "recompute": True},
}


class Deep(nn.Module):
    """`Everything` of conftest, and after it a convolution and two linear layers of one form."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.conv = nn.Conv1d(40, 8, 3, padding=1)
        self.twins = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.relu(self.conv(self.first(ids).transpose(1, 2))).transpose(1, 2)
        for twin in self.twins:
            hidden = torch.tanh(twin(hidden))
        return hidden


def loss(model: Callable[[Tensor], Tensor], ids: Tensor, step: int) -> Tensor:
    """The loss of one step; the seed makes dropout draw alike in both forms."""
    torch.manual_seed(100 + step)
    wanted = torch.linspace(-1, 1, 8).expand(*ids.shape, 8)
    found = model(ids)
    return nn.functional.mse_loss(found, wanted.to(found.dtype))


def inline(traced: opdf.Traced, plan: opdf.Plan, ids: Tensor, make: Make, steps: int) -> nn.Module:
    expanded = opdf.expand(traced, plan)
    inner = make(expanded.parameters())
    for step in range(steps):
        inner.zero_grad()
        loss(expanded, ids, step).backward()
        inner.step()
    folded = opdf.fold(expanded)
    assert isinstance(folded, nn.Module)
    return folded


def hoisted(
    model: nn.Module, plan: opdf.Plan, ids: Tensor, make: Make, steps: int, **options: Any
) -> nn.Module:
    program = opdf.hoist(copy.deepcopy(model), plan, **options)
    inner = make(program.parameters())
    program.refresh()
    for step in range(steps):
        program.zero_grad()
        loss(program.module, ids, step).backward()
        program.backward()
        inner.step()
        program.refresh()
    folded = opdf.fold(program)
    assert isinstance(folded, nn.Module)
    return folded


def distance(found: nn.Module, wanted: nn.Module) -> float:
    """The largest relative distance of any tensor; of zero ones the absolute."""
    theirs = wanted.state_dict()
    distances = []
    for name, value in found.state_dict().items():
        other = theirs[name].double()
        size = other.norm() if other.norm() > 0 else torch.ones(())
        distances.append(float((value.double() - other).norm() / size))
    return max(distances)


KEYS = ["conv.weight", "twins.*", "first.mix.weight", "first.shared.weight", "first.table.weight"]


@pytest.mark.parametrize("name", quick(OPTIMIZERS, {"AdamW"}))
@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float64, 1e-9), pytest.param(torch.float32, 1e-4, marks=pytest.mark.slow)],
)
def test_all_forms_go_the_way_of_the_inline_form(
    student: nn.Module, ids: Tensor, name: str, dtype: torch.dtype, limit: float
) -> None:
    model = Deep(student).to(dtype)
    traced, make = opdf.trace(model, (ids,)), OPTIMIZERS[name]
    plan = opdf.plan(traced, cores=3, min_size=1, include=KEYS)
    assert len(plan.entries) == 6
    assert any(entry.aliases == ("first.head.weight",) for entry in plan.entries)
    wanted = inline(traced, plan, ids, make, STEPS)
    for form, options in FORMS.items():
        found = hoisted(model, plan, ids, make, STEPS, **options)
        assert distance(found, wanted) <= limit, form
        assert torch.equal(found.first.frozen.weight, model.first.frozen.weight)
        assert found.first.head.weight is found.first.table.weight
    # The measure can fail: training went somewhere, and over-parameterised training is not plain.
    assert distance(wanted, model) > 1e-2
    assert distance(plain(model, ids, make, STEPS), wanted) > 1e-3


@pytest.mark.parametrize("name", quick(OPTIMIZERS, {"AdamW"}))
def test_one_step_less_is_another_way(student: nn.Module, ids: Tensor, name: str) -> None:
    model = Deep(student)
    plan = opdf.plan(model, cores=3, min_size=1)
    ways = [hoisted(model, plan, ids, OPTIMIZERS[name], steps) for steps in (STEPS, STEPS - 1)]
    assert distance(*ways) > 1e-4


def plain(model: nn.Module, ids: Tensor, make: Make, steps: int) -> nn.Module:
    model = copy.deepcopy(model)
    inner = make(model.parameters())
    for step in range(steps):
        inner.zero_grad()
        loss(model, ids, step).backward()
        inner.step()
    return model


@pytest.mark.parametrize(
    ("backend", "batched"),
    [("eager", True), pytest.param("aot_eager", False, marks=pytest.mark.slow)],
)
def test_a_compiled_program_goes_the_same_way(
    student: nn.Module, ids: Tensor, backend: str, batched: bool
) -> None:
    model = Deep(student).double()
    plan, make = opdf.plan(model, cores=3, min_size=1), OPTIMIZERS["AdamW"]
    wanted = hoisted(model, plan, ids, make, 3)
    program = opdf.hoist(copy.deepcopy(model), plan, batched=batched)
    program.compile(backend=backend, fullgraph=True)
    inner = make(program.parameters())
    program.refresh()
    for step in range(3):
        program.zero_grad()
        loss(program.module, ids, step).backward()
        program.backward()
        inner.step()
        program.refresh()
    found = opdf.fold(program)
    assert isinstance(found, nn.Module)
    assert distance(found, wanted) <= 1e-12


def test_many_weights_of_many_shapes_compile() -> None:
    """More than torch.compile's limit of recompilations, which counts per code object."""
    model = nn.Sequential(*(nn.Linear(8, 8 + k) for k in range(12)))
    program = opdf.hoist(model, opdf.plan(model, cores=2, min_size=1))
    program.compile(backend="eager", fullgraph=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    program.refresh()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-6)


def test_micro_batches_add_up_to_one_big_batch() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    plan = opdf.plan(model, cores=3, min_size=1)
    x, y = torch.randn(12, 8).double(), torch.randn(12, 4).double()

    def run(parts: int, pull_each: bool) -> nn.Module:
        program = opdf.hoist(copy.deepcopy(model), plan)
        inner = AdamW(program.parameters(), lr=1e-2)
        for _ in range(5):
            program.zero_grad()
            for rows, wanted in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (nn.functional.mse_loss(program.module(rows), wanted) / parts).backward()
                if pull_each:
                    program.backward()
            program.backward()
            inner.step()
            program.refresh()
        folded = opdf.fold(program)
        assert isinstance(folded, nn.Module)
        return folded

    wanted = run(1, pull_each=False)
    assert distance(run(4, pull_each=False), wanted) <= 1e-12
    # One pull for each micro-batch costs more and comes to the same: the cores' gradients add.
    assert distance(run(4, pull_each=True), wanted) <= 1e-12
    assert distance(run(3, pull_each=False), model) > 1e-3
