"""Decay of W by what the wrapped class decays by: lr, a step size that it finds, or a refusal."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import InputError
from opdf_compile.training.optimizer.decay_rule import DecayRule, decay_rule_of
from opdf_compile.training.optimizer.probing import probe
from opdf_compile.training.optimizer.trials import kinds_of


class Finds(torch.optim.Optimizer):
    """Runs at lr 1 and steps by d lr, with d from 1e-6, doubled with each step, in the groups."""

    def __init__(
        self, params: Any, lr: float = 1.0, weight_decay: float = 0.0, decouple: bool = True
    ) -> None:
        options = {"lr": lr, "weight_decay": weight_decay, "decouple": decouple, "d": 1e-6}
        sys.stdout.write("finds its step size\n")
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            eta = group["d"] * group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if group["decouple"]:
                    p.mul_(1 - eta * group["weight_decay"])
                    p.add_(p.grad.sign(), alpha=-eta)
                else:
                    p.add_((p.grad + group["weight_decay"] * p).sign(), alpha=-eta)
            group["d"] *= 2.0


class Anchored(torch.optim.Optimizer):
    """Keeps a second copy of the parameters, which takes the steps; the first follows half way."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    anchor = self.state[p].setdefault("anchor", p.clone())
                    anchor.sub_(p.grad + group["weight_decay"] * p, alpha=group["lr"])
                    p.lerp_(anchor, 0.5)


class Idles(torch.optim.SGD):
    """Fills its state in the first step, and goes from the second on."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.count = getattr(self, "count", 0) + 1
        return super().step(closure) if self.count > 1 else None


class Scaled(torch.optim.SGD):
    """Steps by a norm: decay is a part of the gradient, and a step is as large as lr."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                grad = p.grad + group["weight_decay"] * p.detach()
                p.grad = grad / grad.norm() - group["weight_decay"] * p.detach()
        return super().step(closure)


class Halts(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError("only with a model")


class Own(torch.optim.AdamW):
    """A class of one's own that decays by lr."""


class AnchoredClosure(Anchored):
    """The same, with gradients that it asks for by itself."""

    def step(self, closure: Any) -> None:  # type: ignore[override]
        closure()
        super().step()


class Fully(torch.optim.Optimizer):
    """Decays by the weight decay alone, whatever the rate."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["weight_decay"]).sub_(group["lr"] * p.grad)


RULES: list[tuple[Any, dict[str, Any], DecayRule]] = [
    (Own, {}, DecayRule.RATE),
    (Own, {"lr": 0.0}, DecayRule.RATE),
    (Own, {"lr": torch.tensor(1e-3)}, DecayRule.RATE),
    (torch.optim.SGD, {"lr": 0.1}, DecayRule.RATE),
    (torch.optim.Adafactor, {}, DecayRule.RATE),
    (Idles, {}, DecayRule.RATE),
    (Scaled, {}, DecayRule.RATE),
    (Halts, {}, DecayRule.RATE),
    (Finds, {}, DecayRule.OWN),
    (Fully, {}, DecayRule.OWN),
    (Anchored, {}, DecayRule.OWN),
    (AnchoredClosure, {}, DecayRule.OWN),
    (Finds, {"decouple": False}, DecayRule.NONE),
]


@pytest.mark.parametrize(("make", "options", "rule"), RULES)
def test_the_rule_of_a_class(make: Any, options: dict[str, Any], rule: DecayRule) -> None:
    groups: list[dict[str, Any]] = [{}]
    assert decay_rule_of(make, options, groups, probe(make, options, groups)) is rule


def test_groups_that_differ_in_their_rates_are_tried_as_one() -> None:
    """Layer by layer, a hundred groups are usual; the trials must not grow with their number."""
    made = []

    class Counted(Finds):
        def __init__(self, params: Any, **options: Any) -> None:
            made.append(len(list(params)))
            super().__init__(params, **options)

    def trials(count: int) -> list[int]:
        model = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))
        groups = [{"params": list(m.parameters()), "lr": 0.1 * k} for k, m in enumerate(model, 1)]
        made.clear()
        decay_rule_of(Counted, {}, groups, probe(Counted, {}, groups))
        return list(made)

    few, many = trials(4), trials(12)
    assert len(few) == len(many) > 5
    assert kinds_of([{"lr": 1.0}, {"lr": 2.0, "name": "b"}, {"lr": 1.0, "u": 1}]) == [0, 0, 2]


def test_a_trial_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    groups: list[dict[str, Any]] = [{}]
    decay_rule_of(Finds, {}, groups, probe(Finds, {}, groups))
    assert capsys.readouterr().out == ""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
    return nn.Sequential(*layers).double()


def still(model: nn.Module, opt: Any, steps: int) -> list[Tensor]:
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        opt.step()
    return [p.detach().clone() for p in model.parameters()]


# By make: decay, the number of steps, and how much of W they take away in the plain form.
DECAYS = {Finds: (0.5, 16), Fully: (0.01, 3), Anchored: (0.01, 3)}


@pytest.mark.parametrize("cores", [2, 3, 5])
@pytest.mark.parametrize("make", DECAYS)
def test_a_class_that_decays_by_a_step_of_its_own_decays_w_by_it(make: Any, cores: int) -> None:
    decay, steps = DECAYS[make]
    model, twin = network(), network()
    start = [p.detach().clone() for p in model.parameters()]
    opt = opdf.Overparam(model, make, cores=cores, weight_decay=decay)
    found = still(model, opt, steps)
    wanted = still(twin, make(twin.parameters(), weight_decay=decay), steps)
    for w, plain, first in zip(found, wanted, start, strict=True):
        gone = float(1 - plain.norm() / first.norm())
        assert gone > 1e-4, "the control: it decays"
        # n factors 1 - x / n against 1 - x: they differ by less than x^2 / 2, all steps together.
        assert (w - plain).norm() <= gone**2 * first.norm()


def test_it_does_not_vanish() -> None:
    model = network()
    start = model[0].weight.norm().item()
    opt = opdf.Overparam(model, Finds, cores=3, weight_decay=0.1)
    still(model, opt, 5)
    assert model[0].weight.norm().item() / start == pytest.approx(1 - 31e-7, rel=1e-9)


def test_the_decay_may_be_changed_and_is_saved() -> None:
    model = network()
    opt = opdf.Overparam(model, Fully, cores=3, weight_decay=0.03)
    assert [g["weight_decay"] for g in opt.inner.param_groups] == pytest.approx([0.01])
    opt.param_groups[0]["weight_decay"] = 0.06
    still(model, opt, 1)
    assert [g["weight_decay"] for g in opt.inner.param_groups] == pytest.approx([0.02])
    assert opt.param_groups[0]["weight_decay"] == 0.06
    again = network()
    opt2 = opdf.Overparam(again, Fully, cores=3)
    again.load_state_dict(model.state_dict())
    opt2.load_state_dict(opt.state_dict())
    assert all(map(torch.equal, still(model, opt, 2), still(again, opt2, 2)))


def test_decay_within_the_gradient_at_no_step_size_is_refused() -> None:
    options: dict[str, Any] = {"decouple": False, "cores": 3}
    with pytest.raises(InputError, match=r"in Finds it is a part of the gradient .*decay='cores'"):
        opdf.Overparam(network(), Finds, weight_decay=0.1, **options)
    model = network()
    opt = opdf.Overparam(model, Finds, **options)
    still(model, opt, 1)
    opt.param_groups[0]["weight_decay"] = 0.1
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InputError, match="no step size"):
        still(model, opt, 1)
    assert all(map(torch.equal, before, model.parameters()))
    opdf.Overparam(network(), Finds, weight_decay=0.1, decay="cores", **options)
