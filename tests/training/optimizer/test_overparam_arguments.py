"""What Overparam and overparam_class take, and the sentence for what they do not."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import InputError, PlanError, WeightsChanged
from opdf_compile.io.torchvision_shim import prepare_torchvision
from opdf_compile.parametrizations import mpo, registry


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


X = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
KEYS = ["first.weight", "second.weight"]


@pytest.fixture
def student() -> Student:
    return Student()


def planned(opt: opdf.Overparam) -> list[str]:
    return [entry.key for entry in opt.plan.entries]


def step(student: nn.Module, opt: opdf.Overparam) -> None:
    opt.zero_grad()
    student(X).square().mean().backward()
    opt.step()


GIVEN: dict[str, Any] = {
    "module": lambda s: s,
    "list": lambda s: list(s.parameters()),
    "generator": lambda s: s.parameters(),
    "named": lambda s: s.named_parameters(),
    "named list": lambda s: list(s.named_parameters()),
    "group": lambda s: {"params": s.parameters()},
    "groups": lambda s: [{"params": m.parameters()} for m in (s.first, s.second)],
    "named groups": lambda s: [
        {"params": [(n, p) for n, p in s.named_parameters() if p.ndim > 1]},
        {"params": [(n, p) for n, p in s.named_parameters() if p.ndim < 2], "weight_decay": 0.0},
    ],
    "bare tensors": lambda s: [{"params": p} for p in s.parameters()],
    "empty group": lambda s: [{"params": s.parameters()}, {"params": []}],
}


@pytest.mark.parametrize("name", GIVEN)
def test_everything_that_a_torch_optimizer_takes(student: Student, name: str) -> None:
    twin = copy.deepcopy(student)
    given = GIVEN[name](student)
    if name == "group":
        given = [given]
    opt = opdf.Overparam(given, torch.optim.AdamW, module=student, cores=3, lr=0.1)
    assert sorted(planned(opt)) == KEYS
    assert {id(p) for g in opt.param_groups for p in g["params"]} == {
        id(p) for p in student.parameters()
    }
    before = student.first.weight.detach().clone()
    step(student, opt)
    assert (student.first.weight - before).abs().max() > 1e-3
    other = opdf.Overparam(
        [GIVEN[name](twin)] if name == "group" else GIVEN[name](twin),
        torch.optim.AdamW,
        module=twin,
        cores=3,
        lr=0.1,
    )
    other.load_state_dict(opt.state_dict())
    twin.load_state_dict(student.state_dict())
    step(student, opt)
    step(twin, other)
    assert torch.equal(student.first.weight, twin.first.weight)


def test_a_plan_knows_its_module(student: Student) -> None:
    opt = opdf.Overparam(student.parameters(), plan=opdf.plan(student), lr=0.1)
    assert opt.program.module is student
    assert type(opt.inner) is torch.optim.AdamW


def test_the_default_is_three_cores_under_adamw(student: Student) -> None:
    opt = opdf.Overparam(student)
    assert [len(opt.program.cores(key)) for key in KEYS] == [3, 3]
    assert opt.param_groups[0]["lr"] == 1e-3


def test_scale_is_a_way_to_ask() -> None:
    student = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    opt = opdf.Overparam(student, scale=2.0)
    assert opt.plan.scale == pytest.approx(2.0, rel=0.1)


def test_a_partial_makes_the_optimizer(student: Student) -> None:
    make = functools.partial(torch.optim.AdamW, betas=(0.5, 0.6))
    opt = opdf.Overparam(student, functools.partial(make, lr=0.3), cores=3, eps=1e-3)
    (group,) = opt.param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (0.3, (0.5, 0.6), 1e-3)
    assert all(g["betas"] == (0.5, 0.6) for g in opt.inner.param_groups)
    square = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
    assert opdf.Overparam(square, make).program.units[0].batched, "AdamW all the same"


def test_progress_is_told(student: Student) -> None:
    told: list[tuple[str, int, int]] = []
    opdf.Overparam(student, cores=3, progress=lambda *fact: told.append(fact))
    assert told == [("first.weight", 0, 2), ("second.weight", 1, 2)]


def test_weights_outside_the_groups_are_left_alone(student: Student) -> None:
    opt = opdf.Overparam(student.second.parameters(), module=student, cores=3, lr=0.1)
    assert planned(opt) == ["second.weight"]
    before = student.first.weight.detach().clone()
    step(student, opt)
    assert torch.equal(student.first.weight, before)


def test_two_optimizers_may_share_a_student(student: Student) -> None:
    parts = [student.first, student.second]
    opts = [opdf.Overparam(p.parameters(), module=student, cores=3, lr=0.1) for p in parts]
    assert [planned(opt) for opt in opts] == [[key] for key in KEYS]
    for opt, part, other in zip(opts * 2, parts * 2, reversed(parts * 2), strict=True):
        before, rest = part.weight.detach().clone(), other.weight.detach().clone()
        step(student, opt)
        assert not torch.equal(part.weight, before)
        assert torch.equal(other.weight, rest)


def test_brackets_in_a_name_are_no_glob() -> None:
    student = nn.ModuleDict({"a[bc]": nn.Linear(12, 12), "ab": nn.Linear(12, 12)})
    opt = opdf.Overparam(student["ab"].parameters(), module=student, cores=3)
    assert planned(opt) == ["ab.weight"]


def test_frozen_weights_stay(student: Student) -> None:
    student.first.requires_grad_(False)
    opt = opdf.Overparam(student, cores=3, lr=0.1)
    assert planned(opt) == ["second.weight"]
    assert any("frozen" in refusal.reason for refusal in opt.summary().refusals)
    before = student.first.weight.detach().clone()
    step(student, opt)
    assert torch.equal(student.first.weight, before)


def test_a_weight_unfrozen_later_joins_as_it_is(student: Student) -> None:
    student.first.requires_grad_(False)
    opt = opdf.Overparam(student.second.parameters(), torch.optim.SGD, module=student, lr=0.1)
    step(student, opt)
    student.first.requires_grad_(True)
    opt.add_param_group({"params": student.first.parameters(), "lr": 0.01})
    before = student.first.weight.detach().clone()
    opt.zero_grad()
    student(X).square().mean().backward()
    grad = student.first.weight.grad.clone()
    opt.step()
    assert torch.allclose(student.first.weight, before - 0.01 * grad, atol=1e-7)
    assert len(opt.param_groups) == 2
    assert set(opt.owned_names()) == {name for name, _p in student.named_parameters()}
    # The added group is part of the state.
    twin = Student()
    again = opdf.Overparam(twin.second.parameters(), torch.optim.SGD, module=twin, lr=0.1)
    with pytest.raises(InputError, match="build it as it was built"):
        again.load_state_dict(opt.state_dict())
    again.add_param_group({"params": twin.first.parameters()})
    again.load_state_dict(opt.state_dict())
    assert again.param_groups[1]["lr"] == 0.01


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
            self.body = nn.Linear(16, 16)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.tanh(self.body(self.table(ids))))

    model = Tied()
    ids = torch.randint(0, 40, (6, 3))
    plan = opdf.plan(opdf.trace(model, (ids,)), cores=3, include=["*"])
    assert sorted(e.key for e in plan.entries) == ["body.weight", "table.weight"]
    opt = opdf.Overparam(model.parameters(), plan=plan, module=model, lr=0.1)
    model(ids).square().mean().backward()
    opt.step()
    assert model.head.weight is model.table.weight
    folded = opdf.fold(opt)
    assert folded.head.weight is folded.table.weight
    assert torch.allclose(folded.head.weight, model.head.weight, atol=1e-5)
    assert set(opt.owned_names()) == {"table.weight", "body.weight", "body.bias"}


def test_peft_is_refused_until_it_is_merged() -> None:
    prepare_torchvision()
    import peft

    model = Student()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["first"], r=2))
    with pytest.raises(InputError, match=r"PEFT .*merge_and_unload\(\) first"):
        opdf.Overparam(wrapped, cores=3)
    merged = wrapped.merge_and_unload()
    with pytest.raises(PlanError, match="frozen"):
        opdf.Overparam(merged, cores=3)
    assert planned(opdf.Overparam(merged.requires_grad_(True), cores=3)) == KEYS


class LoraLike(nn.Linear):
    """What PEFT puts into a model, to a test without PEFT."""


LoraLike.__module__ = "peft.tuners.lora"


def test_an_adapter_inside_the_model_is_refused() -> None:
    model = nn.Sequential(nn.Linear(12, 16), LoraLike(16, 12))
    with pytest.raises(InputError, match="found a LoraLike.*merge_and_unload"):
        opdf.Overparam(model, cores=3)


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Student()


WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no module": (lambda s: s.parameters(), {}, InputError, "give module=student"),
    "nothing": (lambda s: [], {"module": 1}, InputError, "the student is a int"),
    "no parameters": (lambda s: [], {"plan": "own"}, InputError, "got no parameters"),
    "a number": (lambda s: 3, {"plan": "own"}, InputError, "got a int, wanted a module"),
    "one tensor": (lambda s: s.first.weight, {"plan": "own"}, InputError, "got a Parameter"),
    "only empty groups": (lambda s: [{"params": []}], {"module": "own"}, PlanError, "no weight"),
    "a group without params": (
        lambda s: [{"parameters": s.parameters(), "lr": 0.1}],
        {"module": "own"},
        InputError,
        r"the keys \['parameters', 'lr'\], wanted 'params'",
    ),
    "another module's": (
        lambda s: [*s.parameters(), *nn.Linear(3, 2).parameters()],
        {"module": "own"},
        InputError,
        r"shape \(2, 3\) that is no parameter of the Student.*ModuleList",
    ),
    "a name": (lambda s: ["first.weight"], {"module": "own"}, InputError, "holds a str"),
    "twice": (
        lambda s: [{"params": s.parameters()}, {"params": [s.first.weight]}],
        {"module": "own"},
        InputError,
        r"shape \(16, 12\) is in group 0 and again in group 1",
    ),
    "a weight in no group": (
        lambda s: s.second.parameters(),
        {"plan": "own"},
        PlanError,
        "names 'first.weight', which is in no param group",
    ),
    "a lazy layer": (
        lambda s: nn.Sequential(nn.Linear(12, 12), nn.LazyLinear(3)),
        {},
        InputError,
        r"'1\.weight' has no values yet .*run a forward",
    ),
    "the meta device": (
        lambda s: nn.Linear(12, 12, device="meta"),
        {},
        InputError,
        "'weight' has no values yet .*load its weights",
    ),
    "an Expanded": (
        lambda s: (lambda traced: opdf.expand(traced, opdf.plan(traced, cores=3)))(
            opdf.trace(s, (X,))
        ),
        {},
        InputError,
        r"AdamW\(expanded\.parameters\(\)\)",
    ),
    "plan and cores": (lambda s: s, {"plan": "own", "cores": 3}, PlanError, "plan and cores are"),
    "all three": (
        lambda s: s,
        {"plan": "own", "cores": 3, "scale": 2.0},
        PlanError,
        "plan and cores and scale are given together",
    ),
    "a path for a plan": (lambda s: s, {"plan": "plan.json"}, InputError, r"opdf.Plan.load\(path"),
    "a plan of another": (
        lambda s: s,
        {"plan": opdf.plan(Projected())},
        PlanError,
        "names 'inner.first.weight'.*make a plan for this student",
    ),
    "decay": (lambda s: s, {"decay": "weights"}, InputError, "decay is 'weights', wanted"),
    "batched": (lambda s: s, {"batched": "yes"}, InputError, "batched is 'yes', wanted True"),
    "an unknown option": (
        lambda s: s,
        {"core": 3},
        InputError,
        "AdamW refuses the options core: .*unexpected keyword argument 'core'",
    ),
    "an option out of range": (lambda s: s, {"lr": -1.0}, InputError, "Invalid learning rate: -1"),
    "Muon with biases": (
        lambda s: s,
        {"make": torch.optim.Muon},
        InputError,
        r"Muon refuses the student's '.*bias' of shape .*2D.*an optimizer of their own",
    ),
    "SparseAdam": (lambda s: s, {"make": torch.optim.SparseAdam}, InputError, "sparse gradients"),
    "LBFGS with groups": (
        lambda s: [{"params": m.parameters()} for m in (s.first, s.second)],
        {"make": torch.optim.LBFGS, "module": "own"},
        InputError,
        r"LBFGS refuses the 2 param groups .*parameter groups",
    ),
    "an instance": (
        lambda s: s,
        {"make": torch.optim.AdamW(nn.Linear(2, 2).parameters())},
        InputError,
        "optimizer_class is a AdamW, wanted a class",
    ),
    "a name of an optimizer": (
        lambda s: s,
        {"make": "adamw"},
        InputError,
        "optimizer_class is a str",
    ),
    "a plan in its place": (
        lambda s: s,
        {"make": opdf.plan(Projected())},
        InputError,
        "plan=plan$",
    ),
    "no optimizer": (lambda s: s, {"make": lambda p: p}, InputError, "made a list, wanted"),
    "stacks under Adafactor": (
        lambda s: s,
        {"make": torch.optim.Adafactor, "batched": True},
        InputError,
        "Adafactor looks at tensors as a whole",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_and_nothing_has_changed(student: Student, name: str) -> None:
    given, options, kind, sentence = WRONG[name]
    options = dict(options)
    make = options.pop("make", torch.optim.AdamW)
    if options.get("plan") == "own":
        options["plan"] = opdf.plan(student, cores=3)
    if options.get("module") == "own":
        options["module"] = student
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(kind, match=sentence):
        opdf.Overparam(given(student), make, **options)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_a_step_of_lbfgs_without_a_closure_says_so(student: Student) -> None:
    opt = opdf.Overparam(student, torch.optim.LBFGS, cores=3)
    student(X).square().mean().backward()
    with pytest.raises(InputError, match=r"LBFGS evaluates .*call step\(closure\)"):
        opt.step()
    assert student.first.weight.grad is not None


def test_a_foreign_parameter_is_not_added(student: Student) -> None:
    opt = opdf.Overparam(student, cores=3)
    with pytest.raises(InputError, match="no parameter of the Student"):
        opt.add_param_group({"params": nn.Linear(2, 2).parameters()})
    assert len(opt.param_groups) == 1
    assert set(opt.state_dict()["opdf"]["names"].values()) == set(dict(student.named_parameters()))


def test_a_projector_trains_along_inside_one_module(student: Student) -> None:
    projector = nn.Linear(12, 6)
    both = nn.ModuleList([student, projector])
    groups = [{"params": student.parameters()}, {"params": projector.parameters(), "lr": 0.01}]
    opt = opdf.Overparam(groups, module=both, cores=3, lr=0.1)
    before = projector.weight.detach().clone()
    projector(student(X)).square().mean().backward()
    opt.step()
    assert not torch.equal(projector.weight, before)
    assert type(opdf.fold(opt)[0]) is Student


def test_copies_are_refused(student: Student) -> None:
    opt = opdf.Overparam(student, cores=3)
    for make in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(InputError, match=r"cannot be pickled or copied, wanted its state_dict"):
            make(opt)
    copy.deepcopy(opt.state_dict())
    copy.deepcopy(student)


@pytest.fixture
def crooked() -> Any:
    """A parametrization that is not linear in its cores, or does not say so."""

    registry.register(mpo.Mpo(name="crooked", multilinear=False))
    yield "crooked"
    del registry._REGISTERED["crooked"]


def test_decay_of_the_weight_needs_linear_cores(student: Student, crooked: str) -> None:
    plan = opdf.plan(student, cores=3, parametrization=crooked)
    with pytest.raises(
        PlanError, match=r"'crooked' of 'first.weight' does not say .*decay='cores'"
    ):
        opdf.Overparam(student, plan=plan, weight_decay=0.1)
    opdf.Overparam(student, plan=plan, weight_decay=0.1, decay="cores")
    opt = opdf.Overparam(student, plan=plan, weight_decay=0.0, lr=0.1)
    step(student, opt)
    opt.param_groups[0]["weight_decay"] = 0.1
    before = student.first.weight.detach().clone()
    opt.zero_grad()
    student(X).square().mean().backward()
    with pytest.raises(PlanError, match="weight_decay is not 0"):
        opt.step()
    assert torch.equal(student.first.weight, before)


def test_overparam_class_is_called_as_trainers_call_it(student: Student) -> None:
    made = opdf.overparam_class(student, opdf.plan(student, cores=2), batched=False, lr=0.5)
    assert made.__name__ == made.__qualname__ == "OverparamAdamW"
    assert issubclass(made, torch.optim.Optimizer)
    groups = [
        {"params": [student.first.weight, student.second.weight], "weight_decay": 0.1},
        {"params": [student.first.bias, student.second.bias], "weight_decay": 0.0},
    ]
    opt = made(groups, lr=2e-5, betas=(0.8, 0.9), eps=1e-6)
    assert isinstance(opt, made)
    assert [g["lr"] for g in opt.param_groups] == [2e-5, 2e-5], "the call overrides the default"
    assert [g["weight_decay"] for g in opt.param_groups] == [0.1, 0.0]
    assert made(groups).param_groups[0]["lr"] == 0.5
    assert len(opt.program.cores("first.weight")) == 2


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (torch.optim.SGD, "OverparamSGD"),
        (functools.partial(torch.optim.Adam, lr=0.1), "OverparamAdam"),
    ],
)
def test_overparam_class_has_a_telling_name(student: Student, make: Any, name: str) -> None:
    made = opdf.overparam_class(student, optimizer_class=make)
    opt = made(student.parameters())
    assert type(opt).__name__ == name
    assert repr(opt).startswith(name)
    assert [len(opt.program.cores(key)) for key in KEYS] == [3, 3]


def test_overparam_class_refuses_what_is_no_student() -> None:
    with pytest.raises(InputError, match="the student is a str"):
        opdf.overparam_class("bert-base")


def test_state_shows_live_views_of_the_cores(student: Student) -> None:
    opt = opdf.Overparam(student, torch.optim.AdamW, cores=3, lr=0.1)
    shown = opt.state[student.first.weight]
    assert list(shown) == ["cores.0", "cores.1", "cores.2"]
    for place, core in enumerate(opt.program.cores("first.weight")):
        assert shown[f"cores.{place}"].data_ptr() == core.data_ptr()
    before = shown["cores.1"].clone()
    step(student, opt)
    assert not torch.equal(shown["cores.1"], before)
    assert torch.equal(shown["cores.1"], opt.program.cores("first.weight")[1])


def test_a_replaced_parameter_is_noticed(student: Student) -> None:
    opt = opdf.Overparam(student, cores=3, lr=0.1)
    student.first.weight = nn.Parameter(student.first.weight.detach().clone())
    student(X).square().mean().backward()
    bias = student.first.bias.detach().clone()
    with pytest.raises(InputError, match="'first.weight' is another Parameter now, wanted"):
        opt.step()
    assert torch.equal(student.first.bias, bias)
    student.first.weight = nn.Parameter(torch.randn(16, 13))
    with pytest.raises(InputError, match=r"'first.weight' is of shape \(16, 13\) now, it was"):
        opt.step()
    del student.first.weight
    student.first.weight = torch.zeros(16, 12)
    with pytest.raises(InputError, match="'first.weight' is no Parameter any more"):
        opt.step()


@pytest.mark.parametrize("given", [None, 3, "opt.pt"])
def test_what_is_no_state(student: Student, given: Any) -> None:
    opt = opdf.Overparam(student, cores=3)
    with pytest.raises(InputError, match=r"load_state_dict got a .*torch\.load"):
        opt.load_state_dict(given)


def test_a_second_optimizer_is_noticed(student: Student) -> None:
    opt = opdf.Overparam(student, cores=3, lr=0.1)
    plain = torch.optim.SGD(student.parameters(), lr=0.1)
    student(X).square().mean().backward()
    plain.step()
    with pytest.raises(WeightsChanged, match=r"2 weights changed since .*Keep them: absorb\(\)"):
        opt.step()
    kept = student.first.weight.detach().clone()
    assert set(opt.absorb()) == set(KEYS)
    assert torch.equal(student.first.weight, kept)
    opt.zero_grad()
    opt.step()
    assert torch.allclose(student.first.weight, kept, atol=1e-6)
