"""Steps of other forms: two points, closures, gradients of gradients, failures, nothing to do.

The oracle of the first ones is the inline form: the same optimizer over an Expanded's own cores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from quick import quick
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import InputError, WeightsChanged
from opdf_compile.training.optimizer.early import moves_early

X = torch.linspace(-1, 1, 48, dtype=torch.float64).view(6, 8).sin()


class Climbs(torch.optim.Optimizer):
    """Sharpness-aware: climbs along the gradients that are there, steps with those of the top."""

    clears: str | None = None

    def __init__(self, params: Any, base: Any = torch.optim.SGD, rho: float = 0.1, **options: Any):
        super().__init__(params, {"rho": rho, **options})
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups
        self.climbed = 0

    @torch.no_grad()
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        given = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        self.climbed = len(given)
        norm = torch.stack([p.grad.norm() for p in given]).norm()
        foot = [p.clone() for p in given]
        for p in given:
            p.add_(p.grad, alpha=self.param_groups[0]["rho"] / float(norm))
        if self.clears is not None:
            self.zero_grad(set_to_none=self.clears == "none")
        loss = closure()
        for p, value in zip(given, foot, strict=True):
            p.copy_(value)
        self.base.step()
        return loss


class ClimbsAndClears(Climbs):
    """Clears the gradients at the top, so that its users' closures need not."""

    clears = "none"


class ClimbsAndZeros(Climbs):
    """The same, and it keeps the tensors."""

    clears = "zeros"


class Leans(torch.optim.SGD):
    """Evaluates at a point ahead of the parameters, through .data, and comes back to step."""

    @torch.no_grad()
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        parameters = [p for g in self.param_groups for p in g["params"]]
        foot = [p.data.clone() for p in parameters]
        for p in parameters:
            p.data.mul_(1.01)
        loss = torch.enable_grad()(closure)()
        for p, value in zip(parameters, foot, strict=True):
            p.data = value
        super().step()
        return loss


class Extrapolates(torch.optim.SGD):
    """From its third step on it evaluates at a point beyond the last two, and steps from there."""

    @torch.no_grad()
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        parameters = [p for g in self.param_groups for p in g["params"]]
        here = [p.clone() for p in parameters]
        for p in parameters:
            path = self.state[p].setdefault("path", [])
            if len(path) > 1:
                p.add_(p - path[-1], alpha=0.5)
        loss = torch.enable_grad()(closure)()
        for p, value in zip(parameters, here, strict=True):
            self.state[p]["path"] = [*self.state[p]["path"], value][-2:]
        super().step()
        return loss


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(8, 8, bias=bias), nn.Tanh(), nn.Linear(8, 4, bias=bias)
    return nn.Sequential(*layers).double()


@functools.cache
def graphs(bias: bool) -> opdf.Traced:
    """Of a network of its own, which nobody changes."""
    return opdf.trace(network(bias), (X,))


def loss_of(model: Callable[[Tensor], Tensor]) -> Tensor:
    return model(X).square().mean()


def closure_of(model: Any, opt: Any, clear: bool = True) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        if clear:
            opt.zero_grad()
        with torch.enable_grad():
            loss = loss_of(model)
            loss.backward()
        return loss

    return closure


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


FORMS: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "sharpness-aware": (Climbs, {"lr": 0.3}, True),
    "sharpness-aware AdamW": (Climbs, {"lr": 0.05, "base": torch.optim.AdamW}, True),
    "clears by itself": (ClimbsAndClears, {"lr": 0.3}, False),
    "clears to zeros": (ClimbsAndZeros, {"lr": 0.3}, False),
    "leans ahead": (Leans, {"lr": 0.3}, True),
    "extrapolates": (Extrapolates, {"lr": 0.3}, True),
    "closure first": (torch.optim.SGD, {"lr": 0.3, "momentum": 0.9}, True),
    "LBFGS": (torch.optim.LBFGS, {"lr": 0.3, "max_iter": 3}, True),
}


@pytest.mark.parametrize("bias", quick([True, False], {True}))
@pytest.mark.parametrize("form", FORMS)
def test_a_step_with_a_closure_is_that_of_the_inline_form(form: str, bias: bool) -> None:
    make, options, clear = FORMS[form]
    model = network(bias)
    plan = opdf.plan(model, cores=3, min_size=0)
    inline = opdf.expand(graphs(bias), plan)
    one = opdf.Overparam(model, make, plan=plan, decay="cores", **options)
    other = make(inline.parameters(), **options)
    for _ in range(5):
        for student, opt in ((model, one), (inline, other)):
            opt.zero_grad()
            loss_of(student).backward()
            opt.step(closure_of(student, opt, clear))
    wanted = opdf.fold(inline)
    start = network(bias)
    for name, found in model.named_parameters():
        value = wanted.get_parameter(name)
        assert torch.allclose(found, value, rtol=0, atol=1e-10), name
        assert (found - start.get_parameter(name)).abs().max() > 1e-3, "the control: it moved"


def test_every_core_climbs() -> None:
    model = network()
    opt = opdf.Overparam(model, Climbs, lr=0.1, cores=3)
    loss_of(model).backward()
    opt.step(closure_of(model, opt))
    stepped = [p for group in opt.inner.param_groups for p in group["params"]]
    assert isinstance(opt.inner, Climbs)
    assert opt.inner.climbed == len(stepped) > len(list(model.parameters()))


EARLY = {
    Climbs: True,
    ClimbsAndClears: True,
    Leans: True,
    Extrapolates: True,
    torch.optim.SGD: False,
    torch.optim.AdamW: False,
    torch.optim.LBFGS: False,
}


@pytest.mark.parametrize("rate", [0.1, 0.0])
@pytest.mark.parametrize("make", EARLY)
def test_who_needs_gradients_before_the_closure(make: Any, rate: float) -> None:
    """Also where the first step is that of a warm-up: what is found is kept."""
    inner = make([nn.Parameter(torch.ones(1, 2, 3, 1))], lr=rate)
    state = torch.get_rng_state()
    assert moves_early(make, inner) is EARLY[make]
    assert not inner.state.get(inner.param_groups[0]["params"][0]), "a throwaway was tried"
    assert torch.equal(torch.get_rng_state(), state)


class Draws(torch.optim.SGD):
    """Steps by noise alone."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = torch.enable_grad()(closure)()
        with torch.no_grad():
            for p in (p for group in self.param_groups for p in group["params"]):
                p.add_(torch.randn_like(p))
        return loss


def test_both_trials_find_the_same_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no generator is seeded: one of a device that is not tried on would stay so."""
    seeds: list[Any] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    assert not moves_early(Draws, Draws([nn.Parameter(torch.ones(2, 2))], lr=0.1))
    assert not seeds


def test_an_optimizer_that_cannot_be_tried_counts_as_one_that_needs_them() -> None:
    class Picky(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            raise RuntimeError("not without its model")

    assert moves_early(Picky, Picky([nn.Parameter(torch.ones(2))], lr=0.1))


class Flaky(torch.optim.AdamW):
    """Fails at the steps that it is told to, before or after its first parameter has moved."""

    fails: str | None = "before"

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        if closure is not None:
            torch.enable_grad()(closure)()
        if self.fails == "before":
            raise RuntimeError("out of luck")
        if self.fails == "after the first":
            with torch.no_grad():
                self.param_groups[-1]["params"][0].add_(0.5)
            raise RuntimeError("out of luck")
        return super().step()


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("rate", [0.1, 1.0, 1.5, 2.5])
def test_a_step_that_failed_has_not_decayed(rate: float, closure: bool) -> None:
    """Factors 0.9, 0, -0.5 and -1.5: also those that cannot be divided out again."""
    model, twin = network(bias=False), network(bias=False)
    opts = []
    for student in (model, twin):
        opts.append(opdf.Overparam(student, Flaky, lr=rate, weight_decay=1.0, cores=3))
        for p in student.parameters():
            p.grad = torch.zeros_like(p)
    opt, straight = opts
    at_first = weights(model)
    cores = [c.detach().clone() for c in opt.program.cores("0.weight")]
    given = ((lambda: None),) if closure else ()
    with pytest.raises(RuntimeError, match="out of luck"):
        opt.step(*given)
    # A closure may have been called at the decayed weights, so that they were written anew.
    assert all(map(torch.allclose if closure else torch.equal, at_first, weights(model)))
    for core, value in zip(opt.program.cores("0.weight"), cores, strict=True):
        # Divided out again a core may miss its last bit.
        assert torch.allclose(core, value, rtol=2.3e-16, atol=0)
    for inner in (opt.inner, straight.inner):
        assert isinstance(inner, Flaky)
        inner.fails = None
    opt.step(*given)
    straight.step()
    for found, wanted, start in zip(weights(model), weights(twin), at_first, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-14, atol=1e-15)
        assert torch.allclose(found, (1 - rate) * start, rtol=1e-12, atol=1e-15)


def test_a_step_that_failed_half_way_leaves_w_the_weight_of_its_cores() -> None:
    model = network(bias=False)
    opt = opdf.Overparam(model, Flaky, lr=0.1, weight_decay=1.0, cores=3, batched=False)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    inner: Any = opt.inner
    inner.fails = "after the first"
    before = weights(model)
    with pytest.raises(RuntimeError, match="out of luck"):
        opt.step()
    after = weights(model)
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [False, True]
    for found, wanted in zip(after, opdf.fold(opt).parameters(), strict=True):
        assert torch.allclose(found, wanted)
    inner.fails = None
    opt.step()


def overwrite(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        model[0].weight.mul_(2.0)  # type: ignore[operator,union-attr]
    return weights(model)


@pytest.mark.parametrize("closure", [False, True])
def test_a_step_without_gradients_does_nothing_over_weights_that_were_averaged(
    closure: bool,
) -> None:
    model = network()
    opt = opdf.Overparam(model, lr=0.1, cores=3)
    loss_of(model).backward()
    opt.step()
    opt.zero_grad()
    held = overwrite(model)
    loss = opt.step(lambda: loss_of(model)) if closure else opt.step()
    assert (loss is not None) is closure
    assert all(map(torch.equal, held, weights(model)))
    loss_of(model).backward()
    with pytest.raises(WeightsChanged):
        opt.step()
    assert all(map(torch.equal, held, weights(model)))


def test_a_closure_that_leaves_old_gradients_alone_steps_no_weight_that_was_averaged() -> None:
    model = network()
    opt = opdf.Overparam(model, lr=0.1, cores=3)
    loss_of(model).backward()
    opt.step()
    held = overwrite(model)
    opt.step(lambda: loss_of(model).detach())
    assert all(map(torch.equal, held, weights(model)))
    with pytest.raises(WeightsChanged):
        opt.step(closure_of(model, opt))
    assert all(map(torch.equal, held, weights(model)))


class Curvature(torch.optim.SGD):
    """Differentiates the gradients once more."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        ps = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        with torch.enable_grad():
            torch.autograd.grad([p.grad for p in ps], ps, [torch.ones_like(p) for p in ps])
        return super().step(closure)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_an_optimizer_of_second_order_is_told_what_cores_lack() -> None:
    model = network()
    opt = opdf.Overparam(model, Curvature, lr=0.1, cores=3)
    before = weights(model)
    loss_of(model).backward(create_graph=True)
    with pytest.raises(InputError, match=r"^Curvature stopped .* wanted an optimizer of first"):
        opt.step()
    assert all(map(torch.equal, before, weights(model)))
    opt.zero_grad()
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match="does not require grad") as caught:
        opt.step()
    assert not isinstance(caught.value, InputError), "what the plain optimizer says"
    # A graph that nobody asks for is no matter.
    other = opdf.Overparam(network(), torch.optim.SGD, lr=0.1, cores=3)
    loss_of(other.program.module).backward(create_graph=True)
    other.step()
