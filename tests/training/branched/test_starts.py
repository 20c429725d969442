"""The start is exact from any numbers, and nothing that leads to it changes the caller's model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from quick import quick
from sites import Stack, batch, stirred
from torch import Tensor, nn

import opdf_compile as opdf


def varied(value: float) -> Callable[[Any], object]:
    return lambda body: (body[1].running_var.fill_(value), body[4].running_var.fill_(value))


STARTS: dict[str, Callable[[Any], object]] = {
    "weights of 0": lambda body: (body[0].weight.zero_(), body[3].weight.zero_()),
    "constant weights": lambda body: body[0].weight.fill_(0.37),
    "tiny weights": lambda body: body[3].weight.fill_(1e-30),
    "a gain of 0": lambda body: body[4].weight.zero_(),
    "a channel of gain 0": lambda body: body[1].weight[2].zero_(),
    "negative gains": lambda body: body[1].weight.neg_(),
    "huge variances": varied(1e12),
    "variances of 0": varied(0.0),
    "gain and variance of 0": lambda body: (varied(0.0)(body), body[1].weight.zero_()),
}


def student(start: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    model = stirred(Stack()).to(dtype)
    with torch.no_grad():
        STARTS[start](model.body)
    return model


# What the averages of dbb may do otherwise than a sum of convolutions: divide, and be of size 0.
BOTH = ("variances of 0", "gain and variance of 0", "weights of 0")


@pytest.mark.parametrize(
    ("start", "form"),
    [
        *((start, "repvgg") for start in STARTS if start not in BOTH),
        *((start, "dbb") for start in BOTH),
        *(pytest.param(start, "repvgg", marks=pytest.mark.slow) for start in BOTH),
        *(pytest.param(s, "dbb", marks=pytest.mark.slow) for s in STARTS if s not in BOTH),
    ],
)
def test_the_start_is_exact_and_the_fold_follows(start: str, form: str) -> None:
    """In float32, of both forms; and branches that have moved fold from there."""
    plain, x = student(start, torch.float32), batch(dtype=torch.float32)
    traced = opdf.trace(plain, (x,))
    plan = opdf.plan(traced, parametrization=form)
    wanted = plain.eval()(x)
    for training in (opdf.branch(plain, plan), opdf.expand(traced, plan)):
        assert torch.equal(training.eval()(x), wanted)
        back = opdf.fold(training).state_dict()
        assert all(torch.equal(back[name], value) for name, value in plain.state_dict().items())
    with torch.no_grad():
        moved = opdf.branch(plain, plan).double().eval()
        for name, tensor in moved.named_parameters():
            if ".branches." in name:
                tensor.add_(0.1)
        made = moved(x.double())
        folded = opdf.fold(moved)(x.double())
    # Sums over 54 taps and two layers; relative, because tiny variances make outputs of 1e5.
    torch.testing.assert_close(folded, made, rtol=0, atol=1e-12 * max(1.0, float(made.abs().max())))
    assert not torch.allclose(made.float(), wanted)


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("repvgg", torch.float16),
        ("dbb", torch.bfloat16),
        pytest.param("repvgg", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("dbb", torch.float16, marks=pytest.mark.slow),
        pytest.param("acnet", torch.float16, marks=pytest.mark.slow),
        pytest.param("acnet", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_from_half_weights(form: str, dtype: torch.dtype) -> None:
    plain, x = student("a gain of 0", dtype), batch(dtype=dtype)
    traced = opdf.trace(plain, (x,))
    plan = opdf.plan(traced, parametrization=form)
    for training in (opdf.branch(plain, plan), opdf.expand(traced, plan)):
        assert torch.equal(training.eval()(x), plain.eval()(x))
        back = opdf.fold(training).state_dict()
        assert all(torch.equal(back[name], value) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("form", quick(["repvgg", "dbb"], {"repvgg"}))
def test_norms_of_more_bits_than_their_convolutions(form: str) -> None:
    """Statistics in bfloat16 would move in steps of 1 %; those who keep norms longer know it."""
    plain: Any = student("negative gains", torch.bfloat16)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    x = batch(dtype=torch.bfloat16)
    traced = opdf.trace(plain, (x,))
    plan = opdf.plan(traced, parametrization=form)
    dtypes = {name: value.dtype for name, value in plain.state_dict().items()}
    for training in (opdf.branch(plain, plan), opdf.expand(traced, plan)):
        found = {
            (name.split(".")[-2][:4], value.dtype)
            for name, value in training.state_dict().items()
            if "branches." in name and "tracked" not in name
        }
        assert found == {("conv", torch.bfloat16), ("norm", torch.float32)}
        assert torch.equal(training.eval()(x), plain.eval()(x))
        training.train()(x).sum().backward()
        folded = opdf.fold(training).state_dict()
        assert {name: value.dtype for name, value in folded.items()} == dtypes


def state(model: nn.Module) -> dict[str, Any]:
    """All that a model holds: bits, objects, flags, gradients, hooks, classes."""
    named: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    hooks = [
        [list(value.values()) for key, value in vars(m).items() if key.endswith("_hooks")]
        for m in model.modules()
    ]
    return {
        "bits": {name: tensor.detach().clone() for name, tensor in named.items()},
        "objects": {name: (id(tensor), tensor.data_ptr()) for name, tensor in named.items()},
        "versions": {name: tensor._version for name, tensor in named.items()},
        "trained": {name: tensor.requires_grad for name, tensor in named.items()},
        "gradients": {
            name: None if t.grad is None else t.grad.clone() for name, t in named.items()
        },
        "modes": {name: module.training for name, module in model.named_modules()},
        "modules": [(name, id(m), type(m)) for name, m in model.named_modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "hooks": hooks,
    }


class ActNorm(nn.BatchNorm2d):
    """A norm with an activation of its own, and one that draws."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act, self.drop = nn.ReLU(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.drop(self.act(super().forward(x)))
        return made


@pytest.mark.parametrize("training", quick([True, False], {True}))
def test_the_callers_model_stays_as_it_is(training: bool) -> None:
    torch.manual_seed(0)
    plain: Any = stirred(Stack())
    plain.body[1] = stirred(ActNorm(6))
    plain.head.bias.requires_grad_(False)
    plain.register_forward_hook(lambda *_given: None)
    plain.body[2].register_forward_pre_hook(lambda *_given: None)
    x = batch(dtype=torch.float32)
    plain(x).sum().backward()
    plain.train(training)
    before, drawn = state(plain), torch.get_rng_state()
    traced = opdf.trace(plain, (x,))
    report = opdf.match(traced)
    plan = opdf.plan(traced, parametrization="dbb")
    branched = opdf.branch(plain, plan)
    copied = copy.deepcopy(branched)
    folded = opdf.fold(branched)
    assert report.matches and len(plan.sites) == 2 and type(folded.body[1]) is ActNorm
    assert torch.equal(torch.get_rng_state(), drawn)
    for model in (branched, copied):
        model.train()(x).sum().backward()
    found = state(plain)
    assert before.keys() == found.keys()
    for what, wanted in before.items():
        if what not in ("bits", "gradients"):
            assert found[what] == wanted, what
            continue
        for name, tensor in wanted.items():
            held = found[what][name]
            assert held is tensor or torch.equal(held, tensor), (what, name)
