"""Param groups that others set or edit: what is there is stepped, and nothing else moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import InputError, WeightsChanged
from opdf_compile.training.optimizer.regrouping import uneven_places

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
OPTIONS = {"lr": 0.05, "weight_decay": 0.1}
Made = tuple[nn.Sequential, Any]


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12))


def build(form: str = "overparam", make: Any = torch.optim.AdamW, **options: Any) -> Made:
    """Two groups, a layer in each; plain, or over-parameterised."""
    student = network()
    groups = [{"params": list(student[place].parameters())} for place in (0, 2)]
    options = OPTIONS | options
    if form == "plain":
        return student, make(groups, **options)
    return student, opdf.Overparam(groups, make, module=student, **{"cores": 3} | options)


def head_alone(form: str = "overparam") -> Made:
    student = network()
    head = list(student[2].parameters())
    if form == "plain":
        return student, torch.optim.AdamW(head, **OPTIONS)
    return student, opdf.Overparam(head, torch.optim.AdamW, module=student, cores=3, **OPTIONS)


def train(student: nn.Module, opt: Any, steps: int = 2) -> None:
    for _ in range(steps):
        student.zero_grad()
        (student(X) - 1).square().mean().backward()
        opt.step()


def values(student: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in student.named_parameters()}


def moved(student: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}


def equal(left: nn.Module, right: nn.Module) -> bool:
    return not moved(left, values(right))


def drop(opt: Any) -> None:
    opt.param_groups = opt.param_groups[1:]


def take_out(opt: Any) -> None:
    opt.param_groups[0]["params"] = opt.param_groups[0]["params"][1:]


def take_out_in_place(opt: Any) -> None:
    del opt.param_groups[0]["params"][0]


def empty(opt: Any) -> None:
    opt.param_groups = []


REST = {"2.weight", "2.bias"}
EDITS: dict[Callable[[Any], None], set[str]] = {
    drop: REST,
    take_out: REST | {"0.bias"},
    take_out_in_place: REST | {"0.bias"},
    empty: set(),
}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("edit", EDITS, ids=lambda f: f.__name__)
def test_what_was_taken_out_does_not_move(edit: Any, batched: bool) -> None:
    plain, over = build("plain"), build(batched=batched)
    for student, opt in (plain, over):
        train(student, opt)
        edit(opt)
        before = values(student)
        train(student, opt, 3)
        assert moved(student, before) == EDITS[edit]
        assert student[0].weight.grad is not None, "its gradient is left to whoever wants it"


def test_what_comes_back_goes_on_where_it_was() -> None:
    """With the moments that it had, as under any optimizer; the others have gone on."""
    for form in ("plain", "overparam"):
        student, opt = build(form)
        train(student, opt)
        kept = opt.param_groups
        drop(opt)
        train(student, opt, 3)
        opt.param_groups = kept
        train(student, opt, 1)
        state = opt.state if form == "plain" else opt.inner.state
        of = {"0": student[0].bias, "2": student[2].bias}
        assert {name: int(state[bias]["step"]) for name, bias in of.items()} == {"0": 3, "2": 6}
    cores = opt.program.units[0].storage
    assert {int(opt.inner.state[core]["step"]) for core in cores} == {3}
    assert opt.state_by_name()["0.weight"]["cores.1.step"] == 3


def test_a_weight_that_moves_to_another_group_follows_that_group() -> None:
    student, opt = build()
    train(student, opt)
    first, second = opt.param_groups
    cores = {id(core) for core in opt.program.units[0].storage}
    second["params"].append(first["params"].pop(0))
    second["lr"] = 0.0
    before = values(student)
    train(student, opt)
    assert moved(student, before) == {"0.bias"}
    assert {id(core) for core in opt.program.units[0].storage} == cores
    second["lr"] = 0.05
    train(student, opt, 1)
    assert moved(student, before) == set(before)
    assert opt.state_by_name()["0.weight"]["cores.0.step"] == 5, "its moments came along"
    assert [len(group["params"]) for group in opt.group_options()] == [1, 3]


def test_groups_in_another_order_are_the_same_run() -> None:
    (one, left), (other, right) = build(), build()
    train(one, left)
    train(other, right)
    right.param_groups = right.param_groups[::-1]
    right.param_groups[1]["lr"] = left.param_groups[0]["lr"] = 0.01
    train(one, left, 3)
    train(other, right, 3)
    assert equal(one, other)


def test_a_group_that_is_put_there_is_one_that_was_added() -> None:
    made = [head_alone("plain"), head_alone(), head_alone()]
    for place, (student, opt) in enumerate(made):
        train(student, opt)
        body = {"params": list(student[0].parameters()), "lr": 0.01}
        if place == 2:  # Not even its other options are given.
            opt.param_groups = [*opt.param_groups, {**body, "params": tuple(body["params"])}]
        else:
            opt.add_param_group(body)
        before = values(student)
        train(student, opt, 3)
        assert moved(student, before) == set(before)
    assert equal(made[1][0], made[2][0])
    assert len(made[2][1].program.units) == 1, "what was not planned gets no cores"


def test_a_single_tensor_is_a_list_of_one() -> None:
    student, opt = head_alone()
    train(student, opt)
    opt.param_groups.append({"params": student[0].bias, "lr": 0.5})
    before = values(student)
    train(student, opt, 1)
    assert moved(student, before) == REST | {"0.bias"}
    assert opt.param_groups[1]["weight_decay"] == OPTIONS["weight_decay"]


@pytest.mark.parametrize("road", ["state_dict", "checkpoint"])
@pytest.mark.parametrize("edit", [drop, take_out, "assigned"])
def test_edited_groups_resume_to_the_bit(edit: Any, road: str, tmp_path: Path) -> None:
    make = head_alone if edit == "assigned" else build
    (student, opt), (again, resumed) = make(), make()
    train(student, opt)
    if edit == "assigned":
        opt.add_param_group({"params": list(student[0].parameters()), "lr": 0.01})
        group = {**resumed.param_groups[0], "params": list(again[0].parameters()), "lr": 0.01}
        resumed.param_groups = [*resumed.param_groups, group]
    else:
        edit(opt)
        edit(resumed)
    train(student, opt)
    if road == "checkpoint":
        opdf.save_checkpoint(tmp_path, opt, step=1)
        opdf.load_checkpoint(tmp_path, resumed)
    else:
        again.load_state_dict(student.state_dict())
        resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    train(student, opt, 3)
    train(again, resumed, 3)
    assert equal(student, again)


def test_a_state_of_other_groups_is_still_refused() -> None:
    (student, opt), (_again, other) = build(), build()
    train(student, opt)
    state = copy.deepcopy(opt.state_dict())
    drop(other)
    with pytest.raises(InputError, match="2 groups of 4 parameters, this optimizer has 1 of 2"):
        other.load_state_dict(state)


def test_a_batch_of_which_a_member_leaves_is_taken_apart() -> None:
    runs = []
    for batched in (True, False):
        student = network()
        opt = opdf.Overparam(student, torch.optim.AdamW, cores=3, batched=batched, **OPTIONS)
        train(student, opt)
        weight = opt.param_groups[0]["params"].pop(0)
        train(student, opt)
        opt.param_groups = [*opt.param_groups, {**opt.param_groups[0], "params": [weight]}]
        opt.param_groups[1]["lr"] = 0.01
        train(student, opt)
        assert len(opt.program.units) == 2
        runs.append(values(student))
    # A batched product may sum in another order.
    assert all((runs[0][name] - value).abs().max() < 1e-6 for name, value in runs[1].items())


class Estimating(torch.optim.SGD):
    """Writes what it estimates into its groups, and counts there in a tensor."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group.setdefault("steps", torch.tensor(0)).add_(1)
            group["estimate"] = group.get("estimate", 1.0) * 0.5
        return super().step(closure)


def test_what_the_wrapped_optimizer_wrote_into_a_group_stays_in_it() -> None:
    student, opt = build(make=Estimating)
    train(student, opt, 2)
    opt.param_groups = [{**group, "lr": 0.01} for group in opt.param_groups]
    moving = opt.param_groups[0]["params"].pop(0)
    opt.param_groups.append({"params": [moving], "lr": 0.02})
    train(student, opt, 1)
    assert [group["estimate"] for group in opt.inner.param_groups] == [0.125] * 4
    assert {group["lr"] for group in opt.inner.param_groups} == {0.01, 0.02}
    assert [int(group["steps"]) for group in opt.inner.param_groups] == [3] * 4
    assert [int(group["steps"]) for group in opt.param_groups] == [3] * 3


def test_a_weight_that_is_away_is_anybodys() -> None:
    student, opt = build()
    train(student, opt)
    kept = opt.param_groups
    drop(opt)
    other = torch.optim.SGD(student[0].parameters(), lr=0.1)
    before = values(student)
    train(student, opt)
    other.step()
    train(student, opt)
    assert moved(student, before) == set(before)
    # Back in a group its cores and the weight must agree again.
    opt.param_groups = kept
    with pytest.raises(WeightsChanged, match="Changed: 0.weight"):
        train(student, opt)
    assert opt.absorb() == ("0.weight",)
    train(student, opt)
    assert opt.state_by_name()["0.weight"]["cores.0.step"] == 2, "of the old cores nothing is left"


def test_a_weight_that_was_away_can_be_absorbed_there_and_added_again() -> None:
    student, opt = build()
    train(student, opt)
    drop(opt)
    train(student, opt, 1)
    with torch.no_grad():
        student[0].weight.mul_(2.0)
    assert opt.absorb() == ("0.weight",)
    opt.add_param_group({"params": list(student[0].parameters()), "lr": 0.01})
    before = values(student)
    train(student, opt, 1)
    assert moved(student, before) == set(before)
    assert {len(opt.state_by_name()["0.weight"]), len(opt.plan.entries)} == {12, 2}
    assert opt.state_by_name()["0.weight"]["cores.0.step"] == 1


def test_both_halves_of_a_group_that_was_split_follow_their_rates() -> None:
    runs = []
    for form in ("plain", "overparam"):
        student, opt = head_alone(form)
        train(student, opt)
        (group,) = opt.param_groups
        members = [[p for p in group["params"] if p.ndim == axes] for axes in (1, 2)]
        opt.param_groups = [{**group, "params": of} for of in members]
        train(student, opt)
        for half in opt.param_groups:
            half["lr"] = 0.0
        before = values(student)
        train(student, opt)
        assert not moved(student, before)
        inner = opt if form == "plain" else opt.inner
        runs.append({group["lr"] for group in inner.param_groups})
    assert runs == [{0.0}, {0.0}]


def test_parameters_that_can_be_listed_once_only_are_stepped() -> None:
    student, opt = head_alone()
    train(student, opt)
    opt.param_groups.append({"params": student[0].parameters(), "lr": 0.5})
    before = values(student)
    train(student, opt, 1)
    assert moved(student, before) == set(before)


def test_what_is_added_where_a_group_was_taken_out_is_looked_at_at_once() -> None:
    student, opt = build()
    kept = opt.param_groups[1]
    drop(opt)
    with pytest.raises(InputError, match="no parameter of the Sequential"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert opt.param_groups == [kept]
    opt.add_param_group({"params": list(student[0].parameters())})
    before = values(student)
    train(student, opt, 1)
    assert moved(student, before) == set(before)


@pytest.mark.parametrize("batched", [True, False])
def test_a_weight_that_is_absorbed_while_nothing_is_stepped(batched: bool) -> None:
    student = network()
    opt = opdf.Overparam(student, torch.optim.AdamW, cores=3, batched=batched, **OPTIONS)
    train(student, opt)
    kept = opt.param_groups
    empty(opt)
    with torch.no_grad():
        student[0].weight.mul_(2.0)
    assert opt.absorb() == ("0.weight",)
    opt.param_groups = kept
    train(student, opt, 1)
    steps = [opt.state_by_name()[f"{place}.weight"]["cores.0.step"] for place in (0, 2)]
    assert steps == [1, 3], "of the other one the moments went on"


class Masters(torch.optim.SGD):
    """Steps copies, and keeps its state by those."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            masters = group.setdefault("masters", [p.clone() for p in group["params"]])
            for p, master in zip(group["params"], masters, strict=True):
                self.state[master]["steps"] = self.state[master].get("steps", 0) + 1
                p.copy_(master.sub_(p.grad, alpha=group["lr"]))


def test_what_a_class_keeps_for_tensors_of_its_own_stays_there() -> None:
    student, opt = build(make=Masters)
    train(student, opt)
    opt.param_groups = opt.param_groups[::-1]
    train(student, opt, 1)
    assert {kept["steps"] for kept in opt.inner.state.values()} == {3}


def foreign(opt: Any) -> None:
    opt.param_groups[0]["params"].append(nn.Parameter(torch.ones(2)))


def twice(opt: Any) -> None:
    opt.param_groups[1]["params"].append(opt.param_groups[0]["params"][0])


WRONG = {foreign: "a tensor of shape .* no parameter of the Seq", twice: "in group 0 and again in"}


@pytest.mark.parametrize("edit", WRONG, ids=lambda f: f.__name__)
def test_groups_that_cannot_be_stepped(edit: Any) -> None:
    student, opt = build()
    train(student, opt)
    groups = copy.deepcopy(opt.group_options())
    edit(opt)
    before = values(student)
    for action in (lambda: train(student, opt), opt.state_dict):
        with pytest.raises(InputError, match=WRONG[edit]):
            action()
    assert not moved(student, before)
    for group in opt.param_groups:
        known = {id(p) for p in student[0].parameters()} | {id(p) for p in student[2].parameters()}
        group["params"] = [p for p in group["params"] if id(p) in known]
    opt.param_groups[1]["params"] = list(student[2].parameters())
    train(student, opt)
    assert [g["params"] for g in opt.group_options()] == [g["params"] for g in groups]


def test_weights_that_share_cores_stay_together() -> None:
    unit: Any = SimpleNamespace(keys=("a.weight", "b.weight"), batched=False)
    stack: Any = SimpleNamespace(keys=("c.weight", "d.weight"), batched=True)
    together = {"a.weight": 0, "b.weight": 0, "c.weight": 0, "d.weight": None}
    assert uneven_places([unit, stack], together) == [stack]
    for place in (1, None):
        with pytest.raises(InputError, match="'a.weight' and 'b.weight' share cores and lie in d"):
            uneven_places([unit, stack], {**together, "b.weight": place})


class Matrices(torch.optim.SGD):
    """Refuses what has one axis, when a group is added."""

    def add_param_group(self, param_group: Any) -> None:
        if any(p.ndim < 2 for p in param_group["params"]):
            raise ValueError("matrices only")
        super().add_param_group(param_group)


@pytest.mark.parametrize("added", [True, False])
def test_a_group_that_the_wrapped_optimizer_refuses_changes_nothing(added: bool) -> None:
    student = network()
    opt = opdf.Overparam(
        [{"params": [student[0].weight]}], Matrices, module=student, lr=0.05, cores=3
    )
    train(student, opt)
    inner, groups = [list(g["params"]) for g in opt.inner.param_groups], list(opt.param_groups)
    extra = {"params": [student[0].bias], "lr": 0.1}
    if not added:
        opt.param_groups = [extra, *groups]
    with pytest.raises(ValueError, match="matrices only"):
        opt.add_param_group(extra) if added else opt.step()
    assert [[id(p) for p in g["params"]] for g in opt.inner.param_groups] == [
        [id(p) for p in params] for params in inner
    ]
    opt.param_groups = groups
    before = values(student)
    train(student, opt)
    assert moved(student, before) == {"0.weight"}


def test_nothing_is_laid_out_anew_where_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    student, opt = build()
    calls: list[int] = []
    layout = opt._laid_out

    def counted(*args: Any) -> Any:
        calls.append(1)
        return layout(*args)

    monkeypatch.setattr(opt, "_laid_out", counted)
    train(student, opt)
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    opt.param_groups = [dict(group) for group in opt.param_groups]
    train(student, opt)
    assert not calls
    drop(opt)
    train(student, opt)
    assert calls == [1]
