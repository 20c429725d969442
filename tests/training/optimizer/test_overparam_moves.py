"""What a step leaves alone, what follows the student, and options that are not Overparam's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import opdf_compile as opdf
from opdf_compile.errors import InputError


def student() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))


def backward(model: nn.Module) -> None:
    model(torch.randn(4, 8)).square().mean().backward()


@pytest.mark.parametrize("batched", [False, True])
def test_weights_without_a_gradient_keep_their_bits_and_are_not_composed(
    batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = student()
    opt = opdf.Overparam(model, lr=1e-2, cores=3, batched=batched, weight_decay=0.1)
    model[2].weight.requires_grad_(False)
    model[4].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    composed: list[str] = []
    from opdf_compile.training.hoisted.unit import Unit

    refresh = Unit.refresh

    def counted(unit: Unit, **options: Any) -> Any:
        composed.extend(unit.keys)
        return refresh(unit, **options)

    monkeypatch.setattr(Unit, "refresh", counted)
    for _ in range(3):
        opt.zero_grad()
        backward(model)
        opt.step()
    assert composed == ["0.weight"] * 3
    assert torch.equal(model[2].weight, before["2.weight"])
    assert torch.equal(model[4].weight, before["4.weight"])
    assert not torch.equal(model[0].weight, before["0.weight"])
    model[2].weight.requires_grad_(True)
    backward(model)
    opt.step()
    assert not torch.equal(model[2].weight, before["2.weight"])


def test_a_closure_without_gradients_changes_no_bit() -> None:
    model = student()
    opt = opdf.Overparam(model, lr=1e-2, cores=3)
    before = copy.deepcopy(model.state_dict())
    assert opt.step(lambda: None) is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_state_of_the_other_decay_keeps_this_optimizers_decay() -> None:
    def build(model: nn.Module, decay: Any) -> opdf.Overparam:
        weights = [p for p in model.parameters() if p.ndim > 1]
        biases = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
        return opdf.Overparam(groups, module=model, lr=1e-2, weight_decay=0.5, cores=3, decay=decay)

    first, second = student(), student()
    saved = build(first, "weight")
    loaded = build(second, "cores")
    loaded.load_state_dict(saved.state_dict())
    second.load_state_dict(first.state_dict())
    backward(second)
    loaded.step()
    assert [group["weight_decay"] for group in loaded.inner.param_groups] == [0.5, 0.0]


class NoRate(torch.optim.Optimizer):
    """An optimizer that has weight decay and no learning rate."""

    def __init__(self, params: Any, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"weight_decay": weight_decay})

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter -= 0.01 * parameter.grad


def test_an_optimizer_without_a_learning_rate() -> None:
    model = student()
    opt = opdf.Overparam(model, NoRate, cores=3)
    before = model[0].weight.detach().clone()
    backward(model)
    opt.step()
    assert not torch.equal(model[0].weight, before)
    with pytest.raises(InputError, match="no learning rate to scale it by.*decay='cores'"):
        opdf.Overparam(student(), NoRate, cores=3, weight_decay=0.1)


@pytest.mark.gpu
def test_cores_follow_their_weights_to_another_device() -> None:
    model, stays = student(), student()
    stays.load_state_dict(model.state_dict())
    opt = opdf.Overparam(model, lr=1e-2, cores=3)
    model.to("cuda")
    other = opdf.Overparam(stays.to("cuda"), lr=1e-2, cores=3)
    for each, optimizer in ((model, opt), (stays, other)):
        each(torch.ones(4, 8, device="cuda")).square().mean().backward()
        optimizer.step()
    assert {c.device.type for unit in opt.program.units for c in unit.storage} == {"cuda"}
    for one, two in zip(model.parameters(), stays.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_only_cores_without_state_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    from opdf_compile.training.hoisted.unit import Unit

    followed: list[str] = []
    monkeypatch.setattr(Unit, "follow", lambda unit: followed.extend(unit.keys))
    model = student()
    opt = opdf.Overparam(model, lr=1e-2, cores=3, batched=False)
    for _ in range(2):
        backward(model)
        opt.step()
    assert followed == ["0.weight", "2.weight", "4.weight"], (
        "before the first step, and never after"
    )


@pytest.mark.parametrize("name", ["overhead", "include", "min_size", "rules"])
def test_options_of_plan_are_named(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"{name} is an option of plan.*plan=opdf.plan\(student, "
    ):
        opdf.Overparam(student(), torch.optim.AdamW, lr=1e-3, **{name: 2})


def test_a_plan_of_a_wrapped_student_is_the_students() -> None:
    model = student()
    compiled = torch.compile(model, backend="eager")
    made = opdf.plan(compiled)
    assert made == opdf.plan(model) == opdf.plan(nn.DataParallel(model))
    assert made.model is model
    opdf.Overparam(compiled, plan=made, lr=1e-3)


def test_the_layout_of_a_convolution_comes_back() -> None:
    model = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    opt = opdf.Overparam(model, lr=1e-2, cores=3)
    assert opdf.fold(opt).weight.stride() == model.weight.stride() == (72, 1, 24, 8)


def test_a_cast_after_the_build_is_named() -> None:
    model = student()
    opt = opdf.Overparam(model, lr=1e-2, cores=3)
    model.bfloat16()
    with pytest.raises(
        opdf.WeightsChanged, match=r"dtype of 0.weight is bfloat16 now, it was float32: cast the"
    ):
        opt.step()


@pytest.mark.parametrize("options", [{"batched": True}, {"process_group": object()}])
def test_hoisting_an_expanded_refuses_what_it_cannot_do(options: dict[str, Any]) -> None:
    traced = opdf.trace(student(), (torch.randn(2, 8),))
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3))
    with pytest.raises(InputError, match="found batched or process_group; fold it and hoist"):
        opdf.hoist(expanded, **options)
