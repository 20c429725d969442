"""state_dict, resume to the bit, states that do not fit, other batchings, hooks."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules

import opdf_compile as opdf
from opdf_compile.errors import InputError, WeightsChanged

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))


def network(width: int = 12) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, width), nn.Tanh(), nn.Linear(width, 12))


def built(
    student: nn.Module, make: Any = torch.optim.AdamW, **options: Any
) -> tuple[opdf.Overparam, Any]:
    groups = [
        {"params": [p for p in student.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in student.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    options = {"lr": 0.05, "cores": 3} | options
    if make in (torch.optim.LBFGS, torch.optim.Rprop):
        groups = [{"params": list(student.parameters())}]
    opt = opdf.Overparam(groups, make, module=student, **options)
    return opt, schedules.ExponentialLR(opt, 0.8)


def train(student: nn.Module, opt: opdf.Overparam, schedule: Any, steps: int) -> None:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = (student(X) - 1).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        opt.step(closure)
        schedule.step()


def through_file(state: Any) -> Any:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def parameters(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(left: nn.Module, right: nn.Module) -> bool:
    return all(map(torch.equal, parameters(left), parameters(right)))


def same_value(left: Any, right: Any) -> bool:
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same_value, left, right))
    return torch.equal(left, right) if isinstance(left, Tensor) else left == right


def same_state(left: opdf.Overparam, right: opdf.Overparam) -> bool:
    """Every tensor and number of the two optimizers, to the bit."""
    first, second = left.state_by_name(), right.state_by_name()
    assert first.keys() == second.keys()
    for name, kept in first.items():
        assert kept.keys() == second[name].keys()
        for key, value in kept.items():
            if not same_value(value, second[name][key]):
                return False
    return left.fingerprints() == right.fingerprints()


OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "AdamW": (torch.optim.AdamW, {}),
    "AdamW amsgrad": (torch.optim.AdamW, {"amsgrad": True}),
    "AdamW lr tensor": (torch.optim.AdamW, {"lr": torch.tensor(0.05)}),
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "NAdam": (torch.optim.NAdam, {}),
    "Rprop": (torch.optim.Rprop, {}),
    "ASGD": (torch.optim.ASGD, {"t0": 1}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "Adafactor": (torch.optim.Adafactor, {}),
    "LBFGS": (torch.optim.LBFGS, {"max_iter": 3}),
}
ORDERS = ["model first", "optimizer first"]


@pytest.mark.parametrize(
    ("name", "order"),
    [
        pytest.param(
            *(name, order),
            marks=() if order == ORDERS[0] or name == "AdamW" else pytest.mark.slow,
        )
        for name in OPTIMIZERS
        for order in ORDERS
    ],
)
def test_resume_is_equal_to_the_bit(name: str, order: str) -> None:
    make, given = OPTIMIZERS[name]
    options = {k: v.clone() if isinstance(v, Tensor) else v for k, v in given.items()}
    student = network()
    opt, schedule = built(student, make, **options)
    train(student, opt, schedule, 3)
    saved = [through_file(part.state_dict()) for part in (student, opt, schedule)]
    train(student, opt, schedule, 3)

    torch.manual_seed(99)
    again = network()
    nn.init.normal_(again[0].weight)
    options = {k: torch.tensor(0.7) if isinstance(v, Tensor) else v for k, v in options.items()}
    opt2, schedule2 = built(again, make, **options)
    parts = [(again, saved[0]), (opt2, saved[1])]
    for part, state in parts if order == ORDERS[0] else reversed(parts):
        part.load_state_dict(state)
    schedule2.load_state_dict(saved[2])
    train(again, opt2, schedule2, 3)
    assert equal(student, again)
    assert same_state(opt, opt2)
    assert opt.param_groups[0]["lr"] == opt2.param_groups[0]["lr"]


def test_the_bits_tell_a_resume_without_the_optimizer_state() -> None:
    student = network()
    opt, schedule = built(student)
    train(student, opt, schedule, 3)
    again = copy.deepcopy(student)
    opt2, schedule2 = built(again)
    schedule2.load_state_dict(schedule.state_dict())
    train(student, opt, schedule, 1)
    train(again, opt2, schedule2, 1)
    assert not equal(student, again)
    assert not same_state(opt, opt2)


def test_the_state_has_the_documented_form() -> None:
    student = network()
    opt, schedule = built(student)
    train(student, opt, schedule, 2)
    state = opt.state_dict()
    assert set(state) == {"state", "param_groups", "opdf"}
    names = state["opdf"]["names"]
    assert [names[i] for g in state["param_groups"] for i in g["params"]] == [
        "0.weight",
        "2.weight",
        "0.bias",
        "2.bias",
    ]
    assert set(state["state"][0]) == {
        f"cores.{place}{suffix}"
        for place in range(3)
        for suffix in ("", ".exp_avg", ".exp_avg_sq", ".step")
    }
    assert set(state["state"][2]) == {"exp_avg", "exp_avg_sq", "step"}
    json.dumps(state["opdf"]["plan"])
    assert set(state["opdf"]["fingerprints"]) == {"0.weight", "2.weight"}
    for place, core in enumerate(opt.program.cores("0.weight")):
        assert torch.equal(state["state"][0][f"cores.{place}"], core)


def test_a_loaded_state_shares_no_memory() -> None:
    student = network()
    opt, schedule = built(student, lr=torch.tensor(0.05))
    train(student, opt, schedule, 2)
    again = copy.deepcopy(student)
    opt2, schedule2 = built(again, lr=torch.tensor(0.05))
    state = opt.state_dict()
    frozen = copy.deepcopy(state)
    opt2.load_state_dict(state)
    train(again, opt2, schedule2, 2)
    for index, kept in state["state"].items():
        for key, value in kept.items():
            assert torch.equal(value, frozen["state"][index][key]), key
    for group, wanted in zip(state["param_groups"], frozen["param_groups"], strict=True):
        assert torch.equal(group["lr"], wanted["lr"])


@pytest.mark.parametrize("batched", [(True, False), (False, True), (True, True)])
def test_a_state_loads_into_another_batching(batched: tuple[bool, bool]) -> None:
    student = network()
    opt, schedule = built(student, batched=batched[0])
    train(student, opt, schedule, 3)
    again = copy.deepcopy(student)
    opt2, schedule2 = built(again, batched=batched[1])
    assert [len(o.program.units) for o in (opt, opt2)] == [1 if b else 2 for b in batched]
    opt2.load_state_dict(through_file(opt.state_dict()))
    schedule2.load_state_dict(schedule.state_dict())
    assert same_state(opt, opt2)
    train(student, opt, schedule, 2)
    train(again, opt2, schedule2, 2)
    # A batched product may sum in another order.
    for left, right in zip(parameters(student), parameters(again), strict=True):
        assert (left - right).abs().max() < 1e-6


@pytest.mark.parametrize("order", ORDERS)
def test_the_model_must_be_loaded_too(order: str) -> None:
    student = network()
    opt, schedule = built(student)
    train(student, opt, schedule, 2)
    state, weights = copy.deepcopy(opt.state_dict()), copy.deepcopy(student.state_dict())
    again = network()
    opt2, schedule2 = built(again)
    before = parameters(again)
    if order == "model first":
        again.load_state_dict(weights)
    else:
        opt2.load_state_dict(state)
    with pytest.raises(WeightsChanged, match="2 weights changed since the last refresh"):
        train(again, opt2, schedule2, 1)
    with pytest.raises(WeightsChanged):
        opdf.fold(opt2)
    if order != "model first":
        assert all(map(torch.equal, before, parameters(again))), "nothing moved"
        again.load_state_dict(weights)
    else:
        opt2.load_state_dict(state)
    train(again, opt2, schedule2, 1)


def plain_state(student: nn.Module, opt: opdf.Overparam) -> Any:
    twin = copy.deepcopy(student)
    plain = torch.optim.AdamW(twin.parameters())
    for p in twin.parameters():
        p.grad = torch.ones_like(p)
    plain.step()
    return plain.state_dict()


def other_order(student: nn.Module, opt: opdf.Overparam) -> Any:
    twin = network()
    groups = [{"params": [twin[2].weight, twin[0].weight]}, {"params": [twin[0].bias]}]
    groups[1]["params"].append(twin[2].bias)
    return opdf.Overparam(groups, module=twin, cores=3).state_dict()


def other_student(student: nn.Module, opt: opdf.Overparam) -> Any:
    return built(nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12)))[0].state_dict()


def other_plan(student: nn.Module, opt: opdf.Overparam) -> Any:
    return built(network(), cores=2)[0].state_dict()


def more_cores(student: nn.Module, opt: opdf.Overparam) -> Any:
    return built(network(), cores=4)[0].state_dict()


def no_cores(student: nn.Module, opt: opdf.Overparam) -> Any:
    twin = network()
    plan = opdf.plan(twin, cores=3, exclude=["2.weight"])
    return built(twin, cores=None, plan=plan)[0].state_dict()


def one_group(student: nn.Module, opt: opdf.Overparam) -> Any:
    return opdf.Overparam(network(), cores=3).state_dict()


def other_rank(student: nn.Module, opt: opdf.Overparam) -> Any:
    state = copy.deepcopy(opt.state_dict())
    state["opdf"] |= {"rank": 1, "ranks": 4}
    return state


def other_class(student: nn.Module, opt: opdf.Overparam) -> Any:
    twin = network()
    found, schedule = built(twin, torch.optim.SGD, momentum=0.9)
    train(twin, found, schedule, 1)
    return found.state_dict()


MISFITS: dict[Callable[..., Any], str] = {
    plain_state: "holds no cores.*a plain optimizer",
    other_order: "build it as it was built",
    other_student: r"differ in '1\.bias'",
    other_plan: r"cores of shapes .* for '0\.weight', wanted .*plan of that state",
    more_cores: r"cores of shapes .* for '0\.weight', wanted .*plan of that state",
    no_cores: r"for '2\.weight', wanted .*plan of that state",
    one_group: "1 groups of 4 parameters, this optimizer has 2 of 4",
    other_class: "the state is that of SGD, this optimizer wraps AdamW",
    other_rank: r"rank 1 of 4, this is rank 0 of 1; use opdf\.save_checkpoint",
}


@pytest.mark.parametrize("misfit", MISFITS, ids=lambda f: f.__name__)
def test_a_state_that_does_not_fit_changes_nothing(misfit: Callable[..., Any]) -> None:
    student = network()
    opt, schedule = built(student)
    train(student, opt, schedule, 2)
    foreign = misfit(student, opt)
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(InputError, match=MISFITS[misfit]):
        opt.load_state_dict(foreign)
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["opdf"] == before["opdf"]
    for index, kept in before["state"].items():
        for key, value in kept.items():
            assert torch.equal(after["state"][index][key], value)
    train(student, opt, schedule, 1)


def test_options_come_with_the_state() -> None:
    student = network()
    opt, schedule = built(student)
    opt.param_groups[0] |= {"betas": (0.5, 0.6), "note": "mine"}
    train(student, opt, schedule, 1)
    opt.param_groups[1]["lr"] = 0.123
    opt2, _schedule = built(student)
    opt2.load_state_dict(through_file(opt.state_dict()))
    for group, wanted in zip(opt2.param_groups, opt.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in wanted.items() if k != "params"
        }
    assert [g["lr"] for g in opt2.inner.param_groups] == [0.05 * 0.8, 0.123]
    assert [g["weight_decay"] for g in opt2.inner.param_groups] == [0.0, 0.0], "W decays by itself"


class Estimating(torch.optim.SGD):
    """Keeps what it estimates in its groups, as Prodigy and schedule-free optimizers do."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["estimate"] = group.get("estimate", 1.0) * 0.9
            group["weight_decay"] += 0.0
        return super().step(closure)


def test_what_an_optimizer_estimates_in_its_groups_is_kept() -> None:
    student = network()
    opt, schedule = built(student, Estimating)
    train(student, opt, schedule, 3)
    opt2, schedule2 = built(student, Estimating)
    opt2.load_state_dict(through_file(opt.state_dict()))
    assert [g["estimate"] for g in opt2.inner.param_groups] == pytest.approx([0.9**3] * 2)
    opt2.param_groups[0]["lr"] = 0.5
    train(student, opt2, schedule2, 1)
    assert opt2.inner.param_groups[0]["lr"] == 0.5, "a loaded option still follows its group"


def test_state_dict_hooks() -> None:
    student = network()
    opt, schedule = built(student)
    seen: list[str] = []

    def mark(optimizer: Any, state: Any) -> Any:
        return {**state, "mark": 7}

    def unmark(optimizer: Any, state: Any) -> Any:
        seen.append(f"mark {state['mark']}")
        return {k: v for k, v in state.items() if k != "mark"}

    opt.register_state_dict_pre_hook(lambda optimizer: seen.append("before"))
    opt.register_state_dict_post_hook(mark)
    opt.register_load_state_dict_pre_hook(unmark)
    opt.register_load_state_dict_post_hook(lambda optimizer: seen.append("after"))
    opt.load_state_dict(opt.state_dict())
    assert seen == ["before", "mark 7", "after"]
    train(student, opt, schedule, 1)


def test_distributed_checkpoint_flattens_the_state_and_cannot_load_it() -> None:
    from torch.distributed.checkpoint import state_dict as dcp

    student = network()
    opt, schedule = built(student)
    train(student, opt, schedule, 2)
    state = dcp.get_optimizer_state_dict(student, opt)
    assert torch.equal(state["state"]["0.weight"]["cores.1"], opt.program.cores("0.weight")[1])
    assert torch.equal(
        state["state"]["0.bias"]["exp_avg"], opt.inner.state[student[0].bias]["exp_avg"]
    )
    # It drops what is neither state nor group: without the checksums nothing could be checked.
    with pytest.raises(InputError, match=r"opdf\.save_checkpoint"):
        dcp.set_optimizer_state_dict(student, opt, state)


def test_absorbed_weights_start_with_a_fresh_state() -> None:
    student = network()
    opt, schedule = built(student, batched=True)
    train(student, opt, schedule, 3)
    state = copy.deepcopy(opt.state_by_name())
    with torch.no_grad():
        student[2].weight.mul_(2)
    assert opt.absorb() == ("2.weight",)
    after = opt.state_by_name()
    assert set(after["2.weight"]) == {"cores.0", "cores.1", "cores.2"}
    for key, value in state["0.weight"].items():
        assert torch.equal(after["0.weight"][key], value), key
    # Its next step is AdamW's first: bias correction counts from one again.
    opt2 = opdf.Overparam([student[2].weight], module=student, cores=3, weight_decay=0.1)
    opt2.param_groups[0]["lr"] = opt.param_groups[0]["lr"]
    twin = copy.deepcopy(student)
    train(student, opt, schedule, 1)
    moved = student[2].weight.detach().clone()
    student.load_state_dict(twin.state_dict())
    student.zero_grad()
    (student(X) - 1).square().mean().backward()
    opt2.step()
    assert torch.allclose(moved, student[2].weight, atol=1e-6)


def test_absorbing_under_an_optimizer_with_a_state_from_the_start() -> None:
    student = network()
    opt, schedule = built(student, torch.optim.Adagrad, initial_accumulator_value=0.5)
    train(student, opt, schedule, 2)
    with torch.no_grad():
        student[0].weight.mul_(2)
    opt.absorb()
    assert torch.equal(
        opt.state_by_name()["0.weight"]["cores.0.sum"],
        torch.full_like(opt.program.cores("0.weight")[0], 0.5),
    )
    train(student, opt, schedule, 1)
