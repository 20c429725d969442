"""Each way to hold or read a weight: the report, a lossless expand, one step, an exact fold."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from long_tail import CASES, NESTED, QUICK, Case
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

import opdf_compile as opdf
from opdf_compile.graph.flow import meetings
from opdf_compile.graph.provenance import Provenance
from opdf_compile.graph.scope import Scope
from opdf_compile.graph.sharing import deep_copy

# A loop cannot be trained: torch has no derivative of while_loop with a free number of steps.
UNTRAINED = {"while_loop"}
# float64: compose and the factorisation each cost a few units of 2^-52 times the weight's norm.
TOLERANCE = 1e-11


def test_names_of_quick_cases_are_in_the_table() -> None:
    assert {case.name for case in CASES} >= QUICK


def cases(given: list[Case]) -> list[Any]:
    """The table as parameters; what `make test` leaves out is marked slow."""
    slow = pytest.mark.slow
    return [pytest.param(c, id=c.name, marks=() if c.name in QUICK else slow) for c in given]


@pytest.mark.parametrize("case", cases(CASES))
@pytest.mark.filterwarnings("ignore")
def test_case(case: Case) -> None:
    student, inputs = case.model(), case.inputs()
    traced = opdf.trace(student, inputs)
    report = opdf.match(traced)
    assert {m.key: (m.row_axes, m.kernel, m.through) for m in report.matches} == case.matches
    reasons = {r.key: r.reason for r in report.refusals}
    assert set(reasons) == set(case.refusals), str(report)
    for key, piece in case.refusals.items():
        assert piece in reasons[key]
    include = [*case.matches, *(case.refusals if case.included else ())]
    plan = opdf.plan(traced, cores=3, min_size=1, include=include)
    expanded = opdf.expand(traced, plan)
    untouched = copy.deepcopy(student.state_dict())
    for phase in (True, False):
        plain = run(student.train(phase), inputs)
        assert_close(run(expanded.train(phase), inputs), plain)
    planned = {entry.key for entry in plan.entries}
    same(opdf.fold(expanded), student, planned)
    if case.name not in UNTRAINED:
        step(expanded, inputs)
    # What was traced is the caller's: only its own calls above moved its buffers.
    assert_close(
        dict(student.named_parameters()), {k: untouched[k] for k, _p in student.named_parameters()}
    )


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    torch.manual_seed(0)
    return model(*inputs)


def assert_close(found: object, wanted: object) -> None:
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)


def same(folded: nn.Module, student: nn.Module, planned: set[str]) -> None:
    """Planned weights differ by rounding only, everything else by nothing."""
    assert type(folded) is type(student)
    left, right = folded.state_dict(), student.state_dict()
    assert list(left) == list(right)
    for key, value in right.items():
        moved = key in planned or key not in dict(student.named_parameters())
        torch.testing.assert_close(
            left[key], value, rtol=TOLERANCE if moved else 0, atol=TOLERANCE if moved else 0
        )


def step(expanded: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """One step of training moves every core that has a gradient, and nothing is NaN."""
    expanded.train()
    optimizer = torch.optim.SGD(expanded.parameters(), lr=1e-3)
    loss = run(expanded, inputs)
    if not loss.requires_grad:
        return  # The student runs without gradients, and so does its training graph.
    loss.square().mean().backward()
    cores = {n: p for n, p in expanded.named_parameters() if "_cores." in n}
    assert cores
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in cores.values())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in cores.values())
    optimizer.step()
    assert torch.isfinite(run(expanded, inputs)).all()


@pytest.mark.slow
def test_nested_weights_are_composed_outside() -> None:
    """A weight that one branch reads is composed in front of the branch, once."""
    case = NESTED[0]
    traced = opdf.trace(case.model(), case.inputs())
    report = opdf.match(traced)
    uses = {m.key: len([u for u in m.uses if u.phase == "train"]) for m in report.matches}
    assert uses == {"a.weight": 1, "b.weight": 1, "c.weight": 2}


def trajectory(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The student before, and after three steps in the inline and in the hoisted form."""
    student, inputs = case.model().train(), case.inputs()
    traced = opdf.trace(student, inputs)
    plan = opdf.plan(traced, cores=3, min_size=1, include=[*case.matches])
    expanded, plain = opdf.expand(traced, plan), deep_copy(student)
    inline = torch.optim.SGD(expanded.parameters(), lr=1e-3)
    hoisted = opdf.Overparam(plain, torch.optim.SGD, plan=plan, lr=1e-3)
    for model, optimizer in ((expanded, inline), (plain, hoisted)):
        for _step in range(3):
            optimizer.zero_grad()
            run(model, inputs).square().mean().backward()
            optimizer.step()
    return student.state_dict(), opdf.fold(expanded).state_dict(), opdf.fold(hoisted).state_dict()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "case", [c for c in cases(CASES) if c.id in ("weight_norm", "spectral_norm, old", "scan")]
)
def test_both_forms_train_a_computed_weight_alike(case: Case) -> None:
    before, inline, hoisted = trajectory(case)
    assert_close(inline, hoisted)
    assert any(not torch.equal(before[key], inline[key]) for key in case.matches)


def test_the_walk_is_linear_in_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the layers are twice the look-ups, with products of activations in between."""
    looked_up = 0
    value = Scope.value

    def counted(self: Scope, given: object) -> Provenance:
        nonlocal looked_up
        looked_up += 1
        return value(self, given)

    monkeypatch.setattr(Scope, "value", counted)
    found = []
    for layers in (50, 100):
        looked_up = 0
        assert len(meetings(deep(layers)).meetings) == layers
        found.append(looked_up)
    assert found[1] <= 2 * found[0]


def deep(layers: int) -> GraphModule:
    """x -> linear(x, 2 W_k) -> its square, so many times."""
    root, graph = nn.Module(), Graph()

    def shaped(node: Node, *shape: int) -> Node:
        node.meta["val"] = torch.empty(shape, device="meta")
        return node

    x = shaped(graph.placeholder("x"), 4, 4)
    for k in range(layers):
        root.register_parameter(f"w{k}", nn.Parameter(torch.empty(4, 4, device="meta")))
        weight = shaped(graph.get_attr(f"w{k}"), 4, 4)
        weight = shaped(graph.call_function(torch.ops.aten.mul.Tensor, (weight, 2.0)), 4, 4)
        x = shaped(graph.call_function(torch.ops.aten.linear.default, (x, weight)), 4, 4)
        x = shaped(graph.call_function(torch.ops.aten.matmul.default, (x, x)), 4, 4)
    graph.output(x)
    return GraphModule(root, graph)
