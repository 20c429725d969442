"""The module form stands in for what its plan was made of, and refuses another student."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from quick import quick
from sites import Stack, batch, stirred
from torch import Tensor, nn
from torch.nn import functional as F

import opdf_compile as opdf
from opdf_compile.errors import PlanError


def student(kind: type[Stack] = Stack) -> Any:
    torch.manual_seed(0)
    return stirred(kind()).double()


def planned(model: nn.Module, form: str = "repvgg") -> opdf.Plan:
    return opdf.plan(opdf.trace(model, (batch(),)), parametrization=form)


@functools.cache
def plan_of_student() -> opdf.Plan:
    return planned(student())


def changed(change: Callable[[Any], object]) -> Any:
    model = student()
    change(model.body)
    return model


def thawed(body: Any) -> None:
    body.train()
    body[1].eval()


OTHERS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a stride": (lambda body: setattr(body[3], "stride", (2, 2)), r"stride \(1, 1\), .* \(2, 2\)"),
    "padding": (lambda body: setattr(body[3], "padding", (0, 0)), r"padding \(1, 1\), .* \(0, 0\)"),
    "gaps": (lambda body: setattr(body[3], "dilation", (2, 2)), r"dilation \(1, 1\)"),
    "eps": (lambda body: setattr(body[1], "eps", 0.1), "eps 1e-05, the model has 0.1"),
    "momentum": (lambda body: setattr(body[4], "momentum", None), "momentum 0.1, .* None"),
    "a dtype": (lambda body: body.float(), "dtype float64, the model has float32"),
    "no bias": (lambda body: setattr(body[0], "bias", None), "bias body.0.bias, .* None"),
    "no gain": (lambda body: setattr(body[1], "weight", None), "norm {'weight': 'body.1.weight'"),
    "frozen": (lambda body: body[0].requires_grad_(False), "it is frozen"),
    "a backward hook": (
        lambda body: body[0].register_full_backward_pre_hook(lambda *_given: None),
        "has hooks, which would see one branch of several",
    ),
    "a frozen norm": (thawed, "it has a frozen BatchNorm"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_student_than_the_plans(case: str) -> None:
    change, message = OTHERS[case]
    plan = plan_of_student()
    assert opdf.branch(student(), plan)
    with pytest.raises(PlanError, match=message):
        opdf.branch(changed(change), plan)


class Functional(Stack):
    """Calls a convolution by its weight, and a norm by its module."""

    def forward(self, x: Tensor) -> Tensor:
        conv: Any = self.body[0]
        y = F.conv2d(x, conv.weight, conv.bias, padding=1)
        return self.head(self.body[1:](y).flatten(2).mean(2))


class Evaluating(Functional):
    """Does so in eval mode alone."""

    def forward(self, x: Tensor) -> Tensor:
        return Stack.forward(self, x) if self.training else super().forward(x)


@pytest.mark.parametrize("kind", quick([Functional, Evaluating], {Functional}))
def test_functions_on_the_tensors_of_modules(kind: type[Stack], tmp_path: Any) -> None:
    """A module in the convolution's place would not be called: branches and norm would be lost."""
    plain = student(kind)
    traced = opdf.trace(plain, (batch(),))
    plan = opdf.plan(traced, parametrization="repvgg")
    assert [site.modules for site in plan.sites] == [False, True]
    plan.save(tmp_path / "plan.json")
    with pytest.raises(PlanError, match=r"'body\.0\.weight' is computed by functions"):
        opdf.branch(plain, opdf.Plan.load(tmp_path / "plan.json"))
    training = opdf.expand(traced, plan).eval()
    assert torch.equal(training(batch()), plain.eval()(batch()))


def test_a_convolution_that_pads_by_itself() -> None:
    """Its branches would read the input without that border; the graph has it as an op."""
    plain = student()
    plain.body[0] = nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect").double()
    traced = opdf.trace(plain, (batch(),))
    plan = opdf.plan(traced, parametrization="mobileone(copies=2)")
    with pytest.raises(PlanError, match="padding_mode='reflect'"):
        opdf.branch(plain, plan)
    training = opdf.expand(traced, plan).eval()
    assert torch.equal(training(batch()), plain.eval()(batch()))


class TrainedOtherwise(nn.BatchNorm2d):
    """A norm that is torch's in eval mode, and another one in training."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x if self.training else x)


class Forgetting(nn.BatchNorm2d):
    """A norm with other running statistics than torch's."""

    def forward(self, x: Tensor) -> Tensor:
        made = super().forward(x)
        if self.training:
            self.running_mean.zero_()
        return made


@pytest.mark.parametrize("kind", [TrainedOtherwise, Forgetting])
def test_a_norm_that_differs_in_training_alone(kind: type[nn.BatchNorm2d]) -> None:
    plain, plan = student(), plan_of_student()
    norm = kind(6).double()
    norm.load_state_dict(plain.body[1].state_dict())
    plain.body[1] = norm
    before = norm.running_mean.clone()
    with pytest.raises(PlanError, match=f"a class of its own \\({kind.__name__}\\)"):
        opdf.branch(plain, plan)
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("hoist", [opdf.hoist, opdf.Overparam])
def test_sites_of_a_student_without_branches(hoist: Any) -> None:
    """Nothing would compute the branches, so nothing would train them."""
    plain, plan = student(), plan_of_student()
    message = r"branches beside 'body\.0\.weight' and 1 more, which the student does not have"
    with pytest.raises(PlanError, match=message):
        hoist(plain, plan=plan)
    with pytest.raises(PlanError, match=message):
        hoist(opdf.branch(plain, planned(plain, "acnet")), plan=plan)
    training = opdf.branch(plain, plan)
    for folded in (opdf.fold(hoist(training, plan=plan)), hoist(training, plan=plan).fold()):
        assert type(folded.body[0]) is nn.Conv2d
        assert list(folded.state_dict()) == list(plain.state_dict())


def test_a_norm_frozen_by_its_name() -> None:
    """What a loop says to the norm reaches all norms of its site, and no other's."""
    training = opdf.branch(student(), plan_of_student()).train()
    site, other = training.body[0], training.body[3]
    training.body[1].eval().requires_grad_(False)
    norms = [m for m in site.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)
    assert site.conv.weight.requires_grad and other.norm.training
    before = {name: value.clone() for name, value in site.named_buffers()}
    training(batch()).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in site.named_buffers())
    assert [m.training for m in opdf.fold(training).body][:4] == [True, False, True, True]
    training.train()
    assert all(norm.training for norm in norms)
