"""The fuzzing itself: each property sees what is wrong, and every step is taken."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import fuzz_properties
import fuzz_steps
import pytest
import torch
from fuzz_builder import Builder
from fuzz_cases import Case
from fuzz_plans import PlanRecipe
from fuzz_properties import check
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import opdf_compile as opdf
from opdf_compile.parametrizations.mpo import Mpo
from opdf_compile.passes import compose_graph
from opdf_compile.planning import PlanEntry
from opdf_compile.training import folding
from opdf_compile.training.hoisted.program import WeightProgram

CODE = """\
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 6)
        self.norm = nn.BatchNorm1d(6)
        self.packed = nn.Parameter(torch.randn(18, 6) / 2)
        self.second = nn.Linear(6, 6)
        self.second.weight = nn.Parameter(self.second.weight.detach().clone())
        self.third = nn.Linear(6, 6, bias=False)
        self.third.weight = self.second.weight

    def forward(self, x):
        q, k, v = F.linear(torch.tanh(self.norm(self.first(x))), self.packed).chunk(3, -1)
        return {"first": self.second(q * torch.sigmoid(k) + v), "second": self.third(v)}"""
CASE = Case(CODE, "float32", "(torch.randn(3, 8),)", True, False, PlanRecipe("cores", 3, 1, 0))


def test_a_right_package_passes() -> None:
    run = check(CASE)
    assert run.plan is not None
    assert {e.key for e in run.plan.entries} == {"first.weight", "packed", "second.weight"}


Break = Callable[[pytest.MonkeyPatch], None]


def decompose_is_off(patch: pytest.MonkeyPatch) -> None:
    right = Mpo.decompose

    def wrong(self: Mpo, weight: Tensor, spec: Any, **options: Any) -> tuple[Tensor, ...]:
        first, *rest = right(self, weight, spec, **options)
        return (first * (1 + 1e-5), *rest)

    patch.setattr(Mpo, "decompose", wrong)


def compose_is_off(patch: pytest.MonkeyPatch) -> None:
    right = Mpo.compose
    patch.setattr(Mpo, "compose", lambda self, tensors, spec: right(self, tensors, spec) * 1.001)


def compose_loses_a_gradient(patch: pytest.MonkeyPatch) -> None:
    right = Mpo.compose

    def wrong(self: Mpo, tensors: Any, spec: Any) -> Tensor:
        return right(self, [tensors[0].detach(), *tensors[1:]], spec)

    patch.setattr(Mpo, "compose", wrong)


def one_entry_of_the_fold_is_off(patch: pytest.MonkeyPatch) -> None:
    right = PlanEntry.fold

    def wrong(*given: Any) -> Tensor:
        weight = right(*given).clone()
        weight.view(-1)[-1] *= 1 + 1e-6
        return weight

    patch.setattr(PlanEntry, "fold", wrong)


def a_bias_changes_in_the_fold(patch: pytest.MonkeyPatch) -> None:
    right = folding.folded_state

    def wrong(expanded: Any) -> dict[str, Tensor]:
        values = right(expanded)
        return {n: v + 1e-7 if n == "first.bias" else v for n, v in values.items()}

    patch.setattr(folding, "folded_state", wrong)


def the_fold_unties(patch: pytest.MonkeyPatch) -> None:
    right = opdf.fold

    def wrong(*given: Any) -> Any:
        student = right(*given)
        if hasattr(student, "third"):
            student.third.weight = torch.nn.Parameter(student.third.weight.detach().clone())
        return student

    patch.setattr(opdf, "fold", wrong, raising=False)


def the_matcher_drops_a_weight(patch: pytest.MonkeyPatch) -> None:
    right = opdf.match

    def wrong(traced: Any) -> Any:
        report = right(traced)
        kept = tuple(m for m in report.matches if m.key != "packed")
        return dataclasses.replace(report, matches=kept)

    patch.setattr(opdf, "match", wrong, raising=False)


def the_caller_s_model_changes(patch: pytest.MonkeyPatch) -> None:
    right = opdf.expand

    def wrong(traced: Any, plan: Any) -> Any:
        with torch.no_grad():
            traced.source.first.bias[0] += 1e-7
        return right(traced, plan)

    patch.setattr(opdf, "expand", wrong, raising=False)


def the_pull_is_off(patch: pytest.MonkeyPatch) -> None:
    right = WeightProgram.backward

    def wrong(self: WeightProgram) -> tuple[str, ...]:
        keys = right(self)
        next(self.parameters()).grad.mul_(1.0001)
        return keys

    patch.setattr(WeightProgram, "backward", wrong)


BROKEN: dict[Break, str] = {
    decompose_is_off: "off by .*, at most",
    compose_is_off: "no rounding of the product",
    compose_loses_a_gradient: "the gradient of packed.0. is off",
    one_entry_of_the_fold_is_off: "1 entries are no rounding of the product",
    a_bias_changes_in_the_fold: "first.bias was not planned, and changed",
    the_fold_unties: "third",
    the_matcher_drops_a_weight: r"skipped in silence: \['packed'\]",
    the_caller_s_model_changes: "first.bias of the caller's model changed|no rounding|not planned",
    the_pull_is_off: "after a step off by",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda f: f.__name__)
def test_a_broken_package_fails(broken: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    compose_graph._traced.cache_clear()
    try:
        with monkeypatch.context() as patch:
            broken(patch)
            with pytest.raises(AssertionError, match=BROKEN[broken]):
                check(CASE)
    finally:
        compose_graph._traced.cache_clear()


def test_a_failure_prints_code_to_paste(monkeypatch: pytest.MonkeyPatch) -> None:
    one_entry_of_the_fold_is_off(monkeypatch)
    with pytest.raises(AssertionError) as caught:
        check(CASE)
    note = "\n".join(caught.value.__notes__)
    code, _, plan = note.partition("\n# with the plan\n")
    scope: dict[str, Any] = {}
    exec(code, scope)
    made = opdf.Plan.from_json(json.loads(plan))
    assert opdf.expand(scope["traced"], made).plan == made
    for name, value in CASE.model().state_dict().items():
        assert torch.equal(value, scope["model"].state_dict()[name])


@pytest.mark.parametrize("step", fuzz_steps.STEPS, ids=lambda f: f.__name__)
def test_every_step_adds_code(step: Callable[[Builder], None]) -> None:
    # `attempt` forgives a step that cannot take the sizes at hand, so none may fail always.
    grown = []

    @settings(max_examples=10, phases=[Phase.generate])
    @given(data=st.data())
    def look(data: st.DataObject) -> None:
        builder = Builder(data.draw)
        builder.reads("x", torch.randn(3, 4, 6))
        builder.attempt(step)
        grown.append(len(builder.init) + len(builder.forward))

    look()
    assert sum(map(bool, grown)) > len(grown) / 2


def test_the_oracle_of_products_sees_through_views() -> None:
    used = fuzz_properties.products(CASE.model(), *CASE.inputs())
    assert used == {"first.weight", "packed", "second.weight"}
