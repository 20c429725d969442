"""lr = "matched": against closed forms of one step, and what it must not touch."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.distill import Matched, matched_rate
from opdf_compile.errors import InputError, PlanError

G = torch.randn(12, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layer() -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(20, 12, bias=False).double()
    made.weight.data *= 3
    return made


def linear_loss(model: nn.Module) -> Tensor:
    """Its gradient with respect to the weight is G, wherever the weight is."""
    return (model.weight * G).sum()


def svd_step(weight: np.ndarray[Any, Any], gradient: np.ndarray[Any, Any], x: float) -> float:
    """||-x (P G + G Q) + x^2 G W^T G||, with P = U S U^T and Q = V S V^T."""
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    p, q = u * s @ u.T, vt.T * s @ vt
    change = -x * (p @ gradient + gradient @ q) + x**2 * gradient @ weight.T @ gradient
    return float(np.linalg.norm(change))


def power_step(weight: np.ndarray[Any, Any], gradient: np.ndarray[Any, Any], x: float) -> float:
    """Of w = t |t|: t moves by -x G 2 |t|."""
    t = np.sign(weight) * np.sqrt(np.abs(weight))
    moved = t - x * gradient * 2 * np.abs(t)
    return float(np.linalg.norm(moved * np.abs(moved) - weight))


def bisected(step: Callable[[float], float], target: float) -> float:
    low, high = 1e-9, 1.0
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if step(middle) < target else (low, middle)
    return low


@pytest.mark.parametrize("lr", [1e-4, 1e-2])
def test_sgd_with_two_balanced_factors_is_the_closed_form(lr: float) -> None:
    model = layer()
    plan = opdf.plan(model, parametrization="svd")
    found = matched_rate(model, linear_loss, plan, torch.optim.SGD, lr, steps=1, tolerance=1e-6)
    weight, target = model.weight.detach().numpy(), lr * float(G.norm())

    def step(x: float) -> float:
        return svd_step(weight, G.numpy(), x)

    assert found.plain_step == pytest.approx(target, rel=1e-12)
    assert found.factor == pytest.approx(step(lr) / target, rel=1e-9)
    assert found.lr == pytest.approx(bisected(step, target), rel=1e-5)
    assert abs(found.factor - 1) > 0.1, "the control: it is not the plain rate"
    assert found.lr != pytest.approx(lr / 2, rel=0.05), "the control: nor that divided by n"


def test_the_response_is_not_linear() -> None:
    model = layer()
    plan = opdf.plan(model, parametrization="svd")
    found = matched_rate(model, linear_loss, plan, torch.optim.SGD, 0.5, steps=1, tolerance=1e-4)
    assert found.lr != pytest.approx(found.plain_lr / found.factor, rel=0.01)
    assert found.step == pytest.approx(found.plain_step, rel=1e-4)
    assert found.trials > 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Dropout(0.2), nn.Linear(32, 16)
    torch.manual_seed(7)  # Of the dropout, as in `walked`.
    return nn.Sequential(*layers)


X = torch.randn(24, 16, generator=torch.Generator().manual_seed(2))


def batch_loss(model: nn.Module) -> Tensor:
    return (model(X) - X.roll(1, 1)).square().mean()


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {"weight_decay": 1.0}),
        (torch.optim.Adagrad, {}),
        (torch.optim.RMSprop, {}),
    ],
)
@pytest.mark.parametrize("parametrization", ["mpo", "svd"])
def test_the_matched_step_is_as_long_as_the_plain_one(
    optimizer: Any, options: dict[str, Any], parametrization: str
) -> None:
    model = network()
    plan = opdf.plan(model, parametrization=parametrization)
    found = matched_rate(model, batch_loss, plan, optimizer, 1e-3, **options)
    assert found.step == pytest.approx(found.plain_step, rel=0.0101)
    # Measured again, by a loop of this test's own.
    assert walked(model, plan, optimizer, found.lr, options) == pytest.approx(found.step, rel=1e-3)
    assert walked(model, None, optimizer, 1e-3, options) == pytest.approx(
        found.plain_step, rel=1e-3
    )
    wrong = walked(model, plan, optimizer, found.lr * 1.2, options)
    assert wrong != pytest.approx(found.plain_step, rel=0.05), "the control"


def walked(
    model: nn.Module, plan: opdf.Plan | None, optimizer: Any, lr: float, options: dict[str, Any]
) -> float:
    own = copy.deepcopy(model)
    options = {**options, "weight_decay": 0.0}
    made: Any = (
        optimizer(own.parameters(), lr=lr, **options)
        if plan is None
        else opdf.Overparam(own.parameters(), optimizer, plan=plan, module=own, lr=lr, **options)
    )
    torch.manual_seed(7)
    lengths = []
    for _ in range(3):
        before = [own[place].weight.detach().double() for place in (0, 3)]
        made.zero_grad()
        batch_loss(own).backward()
        made.step()
        after = [own[place].weight.detach().double() for place in (0, 3)]
        flat = [(new - old).flatten() for old, new in zip(before, after, strict=True)]
        lengths.append(float(torch.cat(flat).norm()))
    return sum(lengths) / 3


def test_nothing_of_the_callers_changes() -> None:
    model = network()
    batch_loss(model).backward()
    before = copy.deepcopy(model.state_dict())
    grads = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    objects = [id(p) for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    optimizer.step()
    kept = copy.deepcopy(optimizer.state_dict())
    model.load_state_dict(before)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def noisy(copied: nn.Module) -> Tensor:
        random.random(), np.random.rand()
        return batch_loss(copied)

    matched_rate(model, noisy, opdf.plan(model), torch.optim.Adam, 1e-3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(map(torch.equal, grads, (p.grad for p in model.parameters())))  # type: ignore[arg-type]
    assert [id(p) for p in model.parameters()] == objects
    assert str(optimizer.state_dict()) == str(kept)


def test_it_is_the_same_every_time() -> None:
    model = network()
    plan = opdf.plan(model)
    found = {matched_rate(model, batch_loss, plan, torch.optim.Adam, 1e-3) for _ in range(2)}
    assert len(found) == 1


def test_small_rates_are_not_lost_in_the_rounding_of_compose() -> None:
    """The factor is the same at all small rates, down to those of pretrained students."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    inputs = torch.randn(16, 64)

    def loss(copied: nn.Module) -> Tensor:
        return (copied(inputs) - inputs).square().mean()

    plan = opdf.plan(model, cores=3)
    factors = [
        matched_rate(model, loss, plan, torch.optim.AdamW, lr, steps=1).factor
        for lr in (1e-4, 1e-6)
    ]
    assert factors[1] == pytest.approx(factors[0], rel=0.01)


def test_groups_keep_the_ratio_of_their_rates() -> None:
    model = network()
    plan = opdf.plan(model)

    def groups(copied: nn.Module) -> list[dict[str, Any]]:
        first, last = copied[0].parameters(), copied[3].parameters()
        return [
            {"params": list(first), "weight_decay": 0.5},
            {"params": list(last), "lr": 1e-2},
        ]

    even = matched_rate(model, batch_loss, plan, torch.optim.SGD, 1e-3)
    uneven = matched_rate(model, batch_loss, plan, torch.optim.SGD, 1e-3, parameters=groups)
    assert uneven.plain_step > 3 * even.plain_step
    assert uneven.step == pytest.approx(uneven.plain_step, rel=0.0101)


def test_it_prints_what_was_found() -> None:
    text = str(Matched(0.002, 3.0, 0.01, 0.5, 0.5, 4))
    assert text.startswith(
        "lr 0.002 in place of 0.01: at the plain rate a step moves the weights 3"
    )


def nothing(model: nn.Module) -> Tensor:
    return torch.ones((), requires_grad=True)


def infinite(model: nn.Module) -> Tensor:
    return batch_loss(model) / 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lr": 0.0}, "lr is 0.0, wanted a positive number"),
        ({"lr": "matched"}, "lr is 'matched', wanted a positive number"),
        ({"steps": 0}, "steps is 0, wanted a whole number from 1"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"plan": None}, "needs a plan with weights"),
        ({"batch_loss": nothing}, "moves no planned weight: batch_loss must use the module"),
        ({"batch_loss": infinite}, "the plain student's step at lr 0.001 is not finite"),
        ({"optimizer_class": torch.optim.LBFGS}, "LBFGS searches for its own step"),
        ({"momentu": 1}, "refuses the options"),
    ],
)
def test_refusals_say_what_was_found(change: dict[str, Any], sentence: str) -> None:
    model = network()
    given = {
        "batch_loss": batch_loss,
        "plan": opdf.plan(model),
        "optimizer_class": torch.optim.SGD,
        "lr": 1e-3,
    }
    with pytest.raises(InputError, match=sentence):
        matched_rate(model, **{**given, **change})


def test_a_plan_of_another_student_is_refused() -> None:
    with pytest.raises(PlanError, match="the student has no such parameter"):
        matched_rate(layer(), linear_loss, opdf.plan(network()), torch.optim.SGD, 1e-3)
