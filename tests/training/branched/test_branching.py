"""The module form: the student's own class, forward and names, with branches while it trains."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from quick import quick
from sites import Stack, batch, steps, stirred
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import FoldError, InputError, PlanError

FORMS = ("repvgg", "acnet", "mobileone(copies=2)", "dbb")

# Sums over 54 taps, a few layers, in float64; both sides are of size 1.
CLOSE = {"rtol": 0.0, "atol": 1e-13}


def student(axes: int = 2, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return stirred(Stack(axes, **options)).double()


def planned(model: nn.Module, form: str) -> opdf.Plan:
    return opdf.plan(opdf.trace(model, (batch(),)), parametrization=form)


def plan_of(form: str, axes: int = 2, groups: int = 1) -> opdf.Plan:
    """That of every unchanged student of these axes and groups."""
    return opdf.plan(graphs(axes, groups), parametrization=form)


@functools.cache
def graphs(axes: int = 2, groups: int = 1) -> opdf.Traced:
    """Of a student of its own, which nobody changes."""
    return opdf.trace(student(axes, groups=groups), (batch(axes),))


# From any numbers, in both forms: test_starts.py.
@pytest.mark.parametrize("form", quick(FORMS, {"acnet", "mobileone(copies=2)"}))
def test_the_start_is_exact(form: str) -> None:
    plain = student()
    training = opdf.branch(plain, plan_of(form))
    assert type(training) is Stack
    assert torch.equal(training.eval()(batch()), plain.eval()(batch()))
    back = opdf.fold(training).state_dict()
    assert all(torch.equal(back[key], value) for key, value in plain.state_dict().items())


@pytest.mark.parametrize(
    ("form", "groups"),
    [
        ("repvgg", 3),
        ("acnet", 1),
        ("mobileone(copies=2)", 1),
        ("dbb", 3),
        pytest.param("repvgg", 1, marks=pytest.mark.slow),
        pytest.param("acnet", 3, marks=pytest.mark.slow),
        pytest.param("mobileone(copies=2)", 3, marks=pytest.mark.slow),
        pytest.param("dbb", 1, marks=pytest.mark.slow),
    ],
)
def test_the_fold_is_exact_after_training(form: str, groups: int) -> None:
    plain = student(groups=groups)
    before = copy.deepcopy(plain.state_dict())
    training = opdf.branch(plain, plan_of(form, groups=groups))
    steps(training, [batch(seed=seed) for seed in range(4)])
    wanted = training.eval()(batch())
    folded = opdf.fold(training)
    torch.testing.assert_close(folded(batch()), wanted, **CLOSE)
    assert not torch.allclose(wanted, plain.eval()(batch()), atol=1e-3)
    assert [type(m) for m in folded.modules()] == [type(m) for m in plain.modules()]
    assert list(folded.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(before[key], value) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("axes", [1, 3])
def test_sequences_and_volumes(axes: int) -> None:
    plain = student(axes)
    training = opdf.branch(plain, plan_of("repvgg", axes))
    steps(training, [batch(axes, seed=seed) for seed in range(3)])
    wanted = training.eval()(batch(axes))
    torch.testing.assert_close(opdf.fold(training)(batch(axes)), wanted, **CLOSE)


@pytest.mark.parametrize(
    "form", quick([*FORMS, "repvgg(start=published)"], {"dbb", "repvgg(start=published)"})
)
def test_the_module_form_trains_as_the_inline_form(form: str) -> None:
    plain, traced = student(), graphs()
    plan = plan_of(form)
    inline, beside = opdf.expand(traced, plan), opdf.branch(plain, plan)
    for model in (inline, beside):
        steps(model, [batch(seed=seed) for seed in range(4)])
        model.eval()
    torch.testing.assert_close(inline(batch()), beside(batch()), **CLOSE)
    one, two = opdf.fold(inline), opdf.fold(beside)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[key], **CLOSE)


def test_the_published_start_is_no_exact_one() -> None:
    plain = student()
    training = opdf.branch(plain, plan_of("repvgg(start=published)"))
    assert not torch.allclose(training.eval()(batch()), plain.eval()(batch()), atol=1e-3)


def test_the_seed_draws_other_branches_and_the_same_ones_again() -> None:
    plain = student()
    drawn = [opdf.branch(plain, plan_of(f"repvgg(seed={seed})")).state_dict() for seed in (0, 0, 1)]
    name = "body.0.branches.point.conv.weight"
    assert torch.equal(drawn[0][name], drawn[1][name])
    assert not torch.equal(drawn[0][name], drawn[2][name])


def test_the_student_comes_back_as_it_was_left() -> None:
    plain = student()
    plan = plan_of("repvgg")
    plain.body[1].weight.requires_grad_(False)
    plain.eval()
    plain.body[4].train()
    folded = opdf.fold(opdf.branch(plain, plan))
    assert [m.training for m in folded.modules()] == [m.training for m in plain.modules()]
    flags = [p.requires_grad for p in plain.parameters()]
    assert [p.requires_grad for p in folded.parameters()] == flags


def test_a_student_that_reads_its_convolution() -> None:
    class Reading(Stack):
        def forward(self, x: Tensor) -> Tensor:
            assert self.body[0].out_channels == 6
            return super().forward(x.to(self.body[0].weight.dtype))

    plain = Reading().double()
    assert opdf.branch(plain, planned(plain, "repvgg"))(batch()).dtype == torch.float64


def test_half_a_plan_by_cores() -> None:
    """The sites have modules of their own; the head's cores are the optimizer's."""
    plain = student()
    traced = opdf.trace(plain, (batch(),))
    sites = opdf.plan(traced, parametrization="repvgg", include=["body.*"])
    cores = opdf.plan(traced, cores=3, include=["head.*"], min_size=1)
    plan = opdf.Plan(cores.entries, sites=sites.sites)
    training = opdf.branch(plain, plan)
    opt = opdf.Overparam(training, torch.optim.SGD, plan=plan, lr=0.05)
    training.train()
    for seed in range(3):
        opt.zero_grad()
        training(batch(seed=seed)).square().mean().backward()
        opt.step()
    wanted = training.eval()(batch())
    folded = opdf.fold(opt)
    assert type(folded.body[0]) is nn.Conv2d
    torch.testing.assert_close(folded(batch()), wanted, **CLOSE)


def test_an_optimizer_adds_no_branches() -> None:
    """A plan's sites are never left out without a word."""
    plain = student()
    traced = opdf.trace(plain, (batch(),))
    plan = opdf.plan(traced, rules={"body.*": "repvgg", "head.*": "gains"}, min_size=1)
    for use in (
        lambda: opdf.Overparam(plain, torch.optim.SGD, plan=plan, lr=0.05),
        lambda: opdf.hoist(plain, plan),
    ):
        with pytest.raises(PlanError, match=r"branches beside 'body.0.weight' and 1 more, which"):
            use()
    half = opdf.Plan(plan.entries, sites=plan.sites[1:])
    with pytest.raises(PlanError, match="branches beside 'body.0.weight', which the student does"):
        opdf.hoist(opdf.branch(plain, half), plan)
    with pytest.raises(InputError, match="Expanded has branches beside 2 .* train it as it is"):
        opdf.hoist(opdf.expand(traced, plan))
    training = opdf.branch(plain, plan)
    assert opdf.Overparam(training, torch.optim.SGD, plan=plan, lr=0.05).plan == plan


class Overwritten(nn.Module):
    """A convolution whose input is written into before its norm runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        read = x * 1.5
        made = self.conv(read)
        read.relu_()
        out: Tensor = self.norm(made) + read
        return out


def test_an_input_that_is_written_into_before_the_norm_runs() -> None:
    """Branches read what the convolution read."""
    torch.manual_seed(0)
    plain = stirred(Overwritten()).double()
    traced = opdf.trace(plain, (batch(),))
    plan = opdf.plan(traced, parametrization="repvgg(start=published)")
    inline, beside = opdf.expand(traced, plan).eval(), opdf.branch(plain, plan).eval()
    torch.testing.assert_close(inline(batch()), beside(batch()), **CLOSE)
    torch.testing.assert_close(opdf.fold(inline).eval()(batch()), inline(batch()), **CLOSE)


class ActNorm(nn.BatchNorm2d):
    """A norm that calls an activation of its own, as timm's do."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.act(super().forward(x))
        return made


class ShiftedNorm(nn.BatchNorm2d):
    """A norm that does what no module of its own does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class OwnConv(nn.Conv2d):
    """A convolution that pads by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, [0, 0, 0, 0]))


def blocks(conv: nn.Module, norm: nn.Module) -> nn.Module:
    return stirred(nn.Sequential(conv, norm)).double()


def test_a_norm_with_an_activation() -> None:
    plain = blocks(nn.Conv2d(3, 3, 3, padding=1), ActNorm(3))
    training = opdf.branch(plain, planned(plain, "repvgg"))
    assert torch.equal(training.eval()(batch()), plain.eval()(batch()))
    steps(training, [batch(seed=seed) for seed in range(3)])
    wanted = training.eval()(batch())
    folded = opdf.fold(training)
    assert type(folded[1]) is ActNorm
    torch.testing.assert_close(folded(batch()), wanted, **CLOSE)
    assert not torch.equal(folded[1].act.weight, plain[1].act.weight)


def hooked() -> nn.Module:
    plain = student()
    plain.body[1].register_forward_hook(lambda *_given: None)
    return plain


def named_twice() -> nn.Module:
    plain = student()
    plain.again = plain.body[0]
    return plain


REFUSED = {
    "more than its modules": (
        lambda: blocks(nn.Conv2d(3, 3, 3, padding=1), ShiftedNorm(3)),
        "is of a class of its own \\(ShiftedNorm\\)",
    ),
    "a convolution of its own": (
        lambda: blocks(OwnConv(3, 3, 3, padding=1), nn.BatchNorm2d(3)),
        "a forward of its own \\(OwnConv\\)",
    ),
    "hooks": (hooked, "has hooks, which would see one branch of several"),
    "two names": (named_twice, "have several names in the student"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_module_form_refuses(case: str) -> None:
    made, message = REFUSED[case]
    plain = made()
    with pytest.raises(PlanError, match=message):
        opdf.branch(plain, planned(plain, "repvgg"))


def test_a_plan_without_sites() -> None:
    plain = student()
    with pytest.raises(PlanError, match="the plan has no sites"):
        opdf.branch(plain, opdf.plan(plain, min_size=1))


def test_a_plan_of_another_student() -> None:
    plan = plan_of("repvgg")
    with pytest.raises(PlanError, match="'body.0.weight' the shape"):
        opdf.branch(student(channels=8), plan)


def test_branches_twice() -> None:
    plain = student()
    plan = plan_of("repvgg")
    with pytest.raises(PlanError, match="has branches already"):
        opdf.branch(opdf.branch(plain, plan), plan)


def test_a_wrapped_student_is_not_folded() -> None:
    plain = student()
    wrapped = nn.Sequential(opdf.branch(plain, plan_of("repvgg")))
    with pytest.raises(FoldError, match=r"stands at '0\.body\.0'"):
        opdf.fold(wrapped)
