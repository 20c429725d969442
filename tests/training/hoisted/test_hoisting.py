"""hoist: what it binds to, what it leaves alone, and what it refuses."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import FoldError, InputError, PlanError
from opdf_compile.training.hoisted import hoisting


class Net(nn.Module):
    """Two twins, a tied pair, a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.table = nn.Embedding(8, 8)
        self.head = nn.Linear(8, 8, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


KEYS = ["first.weight", "second.weight", "table.weight"]


def planned(model: nn.Module, **options: Any) -> opdf.Plan:
    return opdf.plan(model, include=KEYS, min_size=1, **options)


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def attributes(model: nn.Module) -> dict[str, set[str]]:
    """Every attribute, hook and registered name of every submodule."""
    found = {}
    for name, module in model.named_modules():
        held = {key for key, value in vars(module).items() if not isinstance(value, dict)}
        held |= {f"{k}.{i}" for k, v in vars(module).items() if isinstance(v, dict) for i in v}
        found[name] = held
    return found


@pytest.mark.parametrize("options", [{}, {"batched": True}, {"recompute": True}], ids=str)
def test_the_module_stays_as_it_is(options: dict[str, Any]) -> None:
    model = Net()
    before, held = bits(model), attributes(model)
    identities = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    hooks = {
        n: (p._backward_hooks, p._post_accumulate_grad_hooks) for n, p in model.named_parameters()
    }
    program = opdf.hoist(model, planned(model), **options)
    assert program.module is model
    assert bits(model) == before, "W keeps its bits until the first refresh"
    program.refresh()
    assert attributes(model) == held
    found = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    assert found == identities
    for name, parameter in model.named_parameters():
        assert (parameter._backward_hooks, parameter._post_accumulate_grad_hooks) == hooks[name]
    assert type(model).forward is Net.forward
    assert model.head.weight is model.table.weight


def test_a_refresh_moves_the_weights_by_rounding_only() -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    opdf.hoist(model, planned(model, cores=5)).refresh()
    for name, value in model.state_dict().items():
        assert (value - before[name]).norm() <= 1e-6 * before[name].norm()
        if "bias" in name:
            assert torch.equal(value, before[name])


def test_the_default_plan_is_made_for_the_student() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    assert opdf.hoist(model).plan == opdf.plan(model)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: torch.compile(m, backend="eager"),
        nn.DataParallel,
        lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
    ],
    ids=["compile", "DataParallel", "both"],
)
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], Any]) -> None:
    model = Net()
    assert opdf.hoist(wrap(model), planned(model)).module is model


def test_parameters_are_the_cores_and_everything_else_that_trains() -> None:
    model = Net()
    model.first.bias.requires_grad_(False)
    program = opdf.hoist(model, planned(model, cores=3))
    found = list(program.parameters())
    cores = [core for key in KEYS for core in program.cores(key)]
    assert [id(p) for p in found] == [id(c) for c in cores] + [id(model.second.bias)]
    assert len({id(p) for p in found}) == len(found)


def test_cores_of_a_batch_are_views_by_their_own_names() -> None:
    model = Net()
    one, many = (opdf.hoist(copy.deepcopy(model), planned(model), batched=b) for b in (False, True))
    assert [len(list(p.parameters())) for p in (one, many)] == [9 + 2, 3 + 2]
    for key in KEYS:
        for left, right in zip(one.cores(key), many.cores(key), strict=True):
            assert torch.equal(left, right)
    with torch.no_grad():
        many.cores("second.weight")[0].zero_()
    many.refresh()
    assert not many.module.get_parameter("second.weight").any()
    assert many.module.get_parameter("first.weight").any()


def test_what_separates_is_never_batched_together() -> None:
    model = Net()
    program = hoisting.hoist(
        model, planned(model), batched=True, separate=lambda key: key == "second.weight"
    )
    assert [unit.keys for unit in program.units] == [
        ("first.weight", "table.weight"),
        ("second.weight",),
    ]


def test_progress_names_every_weight_before_its_decomposition() -> None:
    seen: list[tuple[str, int, int]] = []
    model = Net()
    opdf.hoist(model, planned(model), progress=lambda *step: seen.append(step))
    assert seen == [(key, place, 3) for place, key in enumerate(KEYS)]


# An Expanded goes on in the hoisted form.


def test_an_expanded_goes_on_with_its_cores_and_its_optimizer() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x, y = torch.randn(16, 8).double(), torch.randn(16, 4).double()
    traced = opdf.trace(model, (x,))
    forms = [opdf.expand(traced, opdf.plan(traced, cores=3, min_size=1)) for _ in range(2)]
    inners = [torch.optim.AdamW(form.parameters(), lr=1e-2) for form in forms]

    def steps(form: nn.Module, inner: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            inner.zero_grad()
            nn.functional.mse_loss(form(x), y).backward()
            inner.step()

    for form, inner in zip(forms, inners, strict=True):
        steps(form, inner, 5)
    program = opdf.hoist(forms[1])
    for key in ("0.weight", "2.weight"):
        for core, own in zip(program.cores(key), forms[1].cores(key), strict=True):
            assert core is own
    # What is not matched has become the folded student's; the optimizer goes on with it.
    student = program.module
    others = dict(student.named_parameters())
    for group in inners[1].param_groups:
        named = {id(p): n for n, p in forms[1].named_parameters()}
        for place, parameter in enumerate(group["params"]):
            name = named[id(parameter)]
            if "_cores" not in name:
                inners[1].state[others[name]] = inners[1].state.pop(parameter)
                group["params"][place] = others[name]
    steps(forms[0], inners[0], 5)
    for _ in range(5):
        program.zero_grad()
        nn.functional.mse_loss(student(x), y).backward()
        program.backward()
        inners[1].step()
        program.refresh()
    wanted = opdf.fold(forms[0]).state_dict()
    for name, value in opdf.fold(program).state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-11, atol=1e-11)


def test_an_expanded_brings_its_own_plan() -> None:
    model = nn.Linear(8, 8)
    traced = opdf.trace(model, (torch.randn(2, 8),))
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3))
    assert opdf.hoist(expanded, expanded.plan).plan == expanded.plan
    with pytest.raises(InputError, match="an Expanded has its own plan; leave plan out"):
        opdf.hoist(expanded, opdf.plan(traced, cores=2))


def test_frozen_cores_of_an_expanded_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    traced = opdf.trace(model, (torch.randn(2, 8),))
    expanded = opdf.expand(traced, opdf.plan(traced, cores=2))
    for core in expanded.cores("0.weight"):
        core.requires_grad_(False)
    program = opdf.hoist(expanded)
    program.refresh()
    program.module(torch.randn(2, 8)).sum().backward()
    assert program.backward() == ("0.weight", "1.weight")
    assert all(core.grad is None for core in program.cores("0.weight"))
    assert all(core.grad is not None for core in program.cores("1.weight"))


def test_an_expanded_program_has_no_module_to_bind_to() -> None:
    exported = torch.export.export(nn.Linear(8, 8), (torch.randn(2, 8),), strict=False)
    traced = opdf.trace(exported)
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3))
    with pytest.raises(InputError, match="made from an ExportedProgram, which has no module to bi"):
        opdf.hoist(expanded)


# Refusals.


def test_a_plan_for_another_student_is_refused() -> None:
    model = Net()
    made = planned(model)
    other = nn.ModuleDict({"frist": nn.Linear(8, 8)})
    with pytest.raises(
        PlanError,
        match=r"names 'first.weight', the student has no such parameter "
        r"\(did you mean 'frist.weight'\?\); make a plan for this student",
    ):
        opdf.hoist(other, made)
    wide = Net()
    wide.second = nn.Linear(9, 8)
    with pytest.raises(
        PlanError, match=r"'second.weight' the shape \[8, 8\], the student has \[8, 9\]"
    ):
        opdf.hoist(wide, made)
    with pytest.raises(
        PlanError, match="'first.weight' the dtype float32, the student has float64"
    ):
        opdf.hoist(Net().double(), made)
    untied = Net()
    untied.head.weight = nn.Parameter(torch.zeros(8, 8))
    with pytest.raises(
        PlanError, match=r"'table.weight' the names \['head.weight', 'table.weight'\]"
    ):
        opdf.hoist(untied, made)


@pytest.mark.parametrize("include", ["first.weight", "second.weight", "*"])
@pytest.mark.parametrize("transposed", [False, True])
def test_two_parameters_on_one_memory_are_refused(include: str, transposed: bool) -> None:
    model = Net()
    shared = model.first.weight.detach()
    model.second.weight = nn.Parameter(shared.mT if transposed else shared)
    plan = opdf.plan(model, cores=3, include=[include])
    before = bits(model)
    with pytest.raises(InputError, match="'first.weight' and 'second.weight' are two Parameters"):
        opdf.hoist(model, plan)
    assert bits(model) == before
    # Parts of one memory that have nothing in common are no tie.
    flat = torch.randn(2, 8, 8)
    model.first.weight, model.second.weight = map(nn.Parameter, flat)
    assert len(opdf.hoist(model, plan).owned()) == len(plan.entries) > 0


def test_a_refused_plan_leaves_the_student_alone() -> None:
    model = Net().double()
    before = bits(model)
    with pytest.raises(PlanError):
        opdf.hoist(model, planned(Net()))
    assert bits(model) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_without_a_factorisation_is_named(bad: float) -> None:
    model = Net()
    made = planned(model)
    with torch.no_grad():
        model.second.weight[1, 2] = bad
    with pytest.raises(
        InputError,
        match=r"'second.weight' cannot be factorised: .*exclude it "
        r"\(exclude=\['second.weight'\]\)",
    ):
        opdf.hoist(model, made)


def test_what_is_no_module_is_refused() -> None:
    model = Net()
    with pytest.raises(InputError, match="the student is a list, wanted a torch.nn.Module"):
        opdf.hoist(list(model.parameters()), planned(model))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batched is 'no', wanted True, False or 'auto'"):
        opdf.hoist(model, planned(model), batched="no")  # type: ignore[arg-type]


def test_an_adapter_is_refused() -> None:
    class Adapter(nn.Linear):
        pass

    Adapter.__module__ = "peft.tuners.lora.layer"
    model = nn.Sequential(Adapter(8, 8))
    with pytest.raises(InputError, match=r"found a Adapter.*call merge_and_unload\(\) first"):
        opdf.hoist(model, opdf.plan(nn.Sequential(nn.Linear(8, 8))))


def test_an_empty_plan_trains_the_rest() -> None:
    model = nn.Linear(4, 4)
    program = opdf.hoist(model, opdf.Plan(()))
    assert [id(p) for p in program.parameters()] == [id(p) for p in model.parameters()]
    model(torch.randn(2, 4)).sum().backward()
    assert program.backward() == ()
    assert model.weight.grad is not None
    program.refresh()
    assert (program.changed(), program.absorb()) == ((), ())


# Copies.


@pytest.mark.parametrize("batched", [False, True])
def test_a_deep_copy_is_a_program_of_its_own(batched: bool) -> None:
    model = Net().double()
    program = opdf.hoist(model, planned(model), batched=batched)
    program.refresh()
    twin = copy.deepcopy(program)
    assert twin.module is not model
    x = torch.randn(4, 8).double()
    for one in (program, twin):
        one.module(x).pow(2).sum().backward()
        assert set(one.backward()) == set(KEYS)
    cores = [
        (a, b) for key in KEYS for a, b in zip(program.cores(key), twin.cores(key), strict=True)
    ]
    assert all(a is not b and torch.equal(a, b) for a, b in cores)
    left, right = (list(p.parameters()) for p in (program, twin))
    for mine, theirs in zip(left, right, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-14, atol=1e-14)
    before = bits(model)
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    twin.refresh()
    assert bits(model) == before
    assert bits(twin.module) != before
    assert not program.changed()


def test_a_program_can_be_pickled_and_a_module_copied_alone() -> None:
    model = Net()
    program = opdf.hoist(model, planned(model))
    program.refresh()
    buffer = io.BytesIO()
    torch.save(program, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert bits(again.module) == bits(model)
    again.refresh()
    assert bits(again.module) == bits(model)
    ema = copy.deepcopy(model)
    assert attributes(ema) == attributes(model)
    with torch.no_grad():
        ema.first.weight.zero_()
    assert not program.changed()


def test_fold_refuses_the_module_of_a_program() -> None:
    model = Net()
    opdf.hoist(model, planned(model))
    with pytest.raises(FoldError, match="fold got a Net, wanted"):
        opdf.fold(model)  # type: ignore[arg-type]
