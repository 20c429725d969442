"""hyperball, ham and repopt against steps by hand, and repopt against explicit branches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from metric_oracle import (
    KEYS,
    LR,
    OPTIONS,
    STEPS,
    After,
    by_hand,
    close,
    inner_class,
    network,
    train,
)
from quick import covering
from torch import Tensor, nn
from torch.nn import functional

import opdf_compile as opdf

of_kinds = pytest.mark.parametrize("kind", ["SGD", "AdamW"])


def optimizer_of(model: nn.Module, method: str, kind: str, **options: Any) -> opdf.Overparam:
    plan = opdf.plan(model, parametrization=method, min_size=1)
    return opdf.Overparam(
        model, inner_class(kind), plan=plan, **{"lr": LR, **OPTIONS[kind], **options}
    )


def norm(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).sum()))


def hyperball(rate: float = LR) -> After:
    radius: dict[int, float] = {}

    def after(before: np.ndarray, move: np.ndarray, _gradient: np.ndarray) -> np.ndarray:
        held = radius.setdefault(before.size, norm(before))
        moved = before + rate * held * move / norm(move)
        return held * moved / norm(moved)

    return after


def ham(before: np.ndarray, move: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    weight = before + move
    power = LR * (-200.0 * np.sign(weight) * gradient - 1e-3)
    return weight * np.exp(np.clip(power, -5, 5))


def plain(before: np.ndarray, move: np.ndarray, _gradient: np.ndarray) -> np.ndarray:
    return before + move


@of_kinds
def test_hyperball(kind: str) -> None:
    start, model = network(), network()
    opt = optimizer_of(model, "hyperball", kind)
    train(model, opt)
    close(model, by_hand(kind, hyperball()))
    close(opdf.fold(opt), model, 0.0)
    for key in KEYS:
        radius = float(start.get_parameter(key).detach().norm())
        assert float(model.get_parameter(key).detach().norm()) == pytest.approx(radius, rel=1e-14)
    other = network()
    train(other, optimizer_of(other, "hyperball", kind, lr=2 * LR))
    assert far(other, model) > 1e-3, "the control"


def far(one: nn.Module, other: nn.Module) -> float:
    return float((one.get_parameter(KEYS[-1]) - other.get_parameter(KEYS[-1])).detach().abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_long_move_of_a_small_weight_is_put_to_its_length(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    model = nn.Linear(64, 64, bias=False).to(dtype)
    nn.init.normal_(model.weight, std=2e-3)
    opt = optimizer_of(model, "hyperball", "SGD", lr=0.02, momentum=0.0)
    before = model.weight.detach().double().numpy().copy()
    signs = torch.randn(64, 64).sign()
    model.weight.grad = signs.to(dtype)
    opt.step()
    wanted = hyperball(0.02)(before, -0.02 * signs.double().numpy(), before)
    # What W is with its move, and after the scale, is rounded by half an ulp each; the move, of
    # a fiftieth of that size, twice.
    ulp = torch.finfo(dtype).eps
    error = norm(model.weight.detach().double().numpy() - wanted)
    assert error <= 1.1 * ulp * norm(before), "beside a step of 0.02 of it"


def test_the_norm_of_a_large_weight_is_that_of_float64() -> None:
    model = nn.Linear(2048, 2048, bias=False)
    nn.init.constant_(model.weight, 1e-3)
    opt = optimizer_of(model, "hyperball", "SGD", lr=0.02, momentum=0.0)
    truth = float(model.weight.detach().double().norm())
    # 2^16 squares in a row are within 5e-5; 2^22 would be off by 4e-3.
    assert float(opt.program.cores("weight")[0]) == pytest.approx(truth, rel=1e-4)
    before = model.weight.detach().clone()
    model.weight.grad = torch.ones(2048, 2048)
    model.weight.grad[0] = -1
    opt.step()
    after = model.weight.detach().double()
    assert float(after.norm()) == pytest.approx(truth, rel=1e-4)
    wanted = hyperball(0.02)(
        before.double().numpy(), -0.02 * model.weight.grad.double().numpy(), before.numpy()
    )
    assert norm(after.numpy() - wanted) <= 1e-4 * truth


@of_kinds
def test_the_rate_of_hyperball_is_the_scheduled_one(kind: str) -> None:
    model = network()
    opt = optimizer_of(model, "hyperball", kind)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.8**step)
    for _ in range(STEPS):
        train(model, opt, 1)
        schedule.step()
    rates = iter(LR * 0.8**step for step in range(STEPS))
    held: dict[int, Any] = {}

    def after(before: np.ndarray, move: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        rate = held["rate"] = next(rates) if before.shape[1:] == (3, 3, 3) else held["rate"]
        radius = held.setdefault(before.size, norm(before))
        moved = before + rate * radius * move / norm(move)
        return radius * moved / norm(moved)

    wanted = by_hand(kind, after, lr=lambda step: LR * 0.8**step)
    close(model, wanted)


@of_kinds
def test_ham(kind: str) -> None:
    model = network()
    opt = optimizer_of(model, "ham", kind)
    train(model, opt)
    close(model, by_hand(kind, ham))
    assert far(model, by_hand(kind, plain)) > 1e-3, "the control"


def test_ham_without_the_gradient_is_decay() -> None:
    model, decayed = network(), network()
    train(model, optimizer_of(model, "ham(alpha=0, beta=0.5)", "SGD", momentum=0.0))
    inner = torch.optim.SGD(decayed.parameters(), lr=LR)
    for _ in range(STEPS):
        train(decayed, inner, 1)
        with torch.no_grad():
            for key in KEYS:
                decayed.get_parameter(key).mul_(np.exp(-LR * 0.5))
    close(model, decayed)


def test_the_exponent_of_ham_is_kept_within_five() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0]]))
    plan = opdf.plan(model, parametrization="ham", min_size=1)
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=1e-6)
    model.weight.grad = torch.tensor([[1e6, -1e6]]).double()
    opt.step()
    # SGD leaves 0 and 2.
    wanted = torch.tensor([[0.0, 2 * np.exp(5.0)]]).double()
    torch.testing.assert_close(model.weight.detach(), wanted, rtol=1e-12, atol=1e-12)


def test_ham_follows_maximize() -> None:
    found = []
    for sign in (1.0, -1.0):
        model = network()
        opt = optimizer_of(model, "ham", "SGD", maximize=sign < 0)
        for _ in range(3):
            opt.zero_grad()
            (sign * model(torch.ones(2, 3, 5, 5).double()).square().mean()).backward()
            opt.step()
        found.append(model)
    close(found[0], found[1], 1e-14)


class Block(nn.Module):
    """A k x k, a 1 x 1 and an identity branch with constant scales, each with its own weight."""

    def __init__(self, weight: Tensor, s: float, t: float, *, identity: bool, groups: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.s, self.t, self.groups = s, t, groups
        self.point = nn.Parameter(
            0.1 * torch.randn(weight.shape[:2], generator=generator).to(weight)
        )
        size = len(weight) if identity else 0
        self.diagonal = nn.Parameter(torch.ones(size).to(weight))
        self.kernel = nn.Parameter(torch.zeros_like(weight))
        with torch.no_grad():
            self.kernel.copy_((weight - self.whole()) / s)

    def whole(self) -> Tensor:
        weight = self.s * self.kernel
        point = self.t * self.point
        if len(self.diagonal):
            rows, channels = torch.arange(len(weight)), weight.shape[1]
            point = point + torch.zeros_like(point).index_put(
                (rows, rows % channels), self.diagonal
            )
        return weight + functional.pad(point[:, :, None, None], (1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.whole(), padding=1, groups=self.groups)


@pytest.mark.parametrize(
    ("kind", "scales", "shape"),
    covering(
        ["SGD", "AdamW"],
        [(1.0, 1.0), (0.7, 1.3), (2.0, 0.0)],
        [(False, 1), (True, 2), (True, 1)],
    ),
)
def test_repopt_is_branches_with_constant_scales(
    kind: str, scales: tuple[float, float], shape: tuple[bool, int]
) -> None:
    identity, groups = shape
    torch.manual_seed(0)
    model = nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=False).double()
    branches = Block(model.weight.detach(), *scales, identity=identity, groups=groups)
    torch.testing.assert_close(branches.whole(), model.weight, rtol=1e-14, atol=1e-15)
    x = torch.randn(4, 4, 6, 6).double()
    # Without eps the size of a gradient is no matter at all.
    options = {**OPTIONS[kind], **({"eps": 1e-30} if kind == "AdamW" else {})}
    s, t = scales
    request = f"repopt(kernel_scale={s}, point_scale={t}, identity={str(identity).lower()})"
    # The stack reads the convolution's groups from the module.
    plan = opdf.plan(model, parametrization=request, min_size=1)
    opt = opdf.Overparam(model, inner_class(kind), plan=plan, lr=0.01, **options)
    rival = inner_class(kind)(branches.parameters(), lr=0.01, **options)
    start = model.weight.detach().clone()
    for _ in range(30):
        for student, optimizer in ((model, opt), (branches, rival)):
            optimizer.zero_grad()
            (student(x) - x).square().mean().backward()
            optimizer.step()
    apart = (branches.whole() - model.weight).detach().abs().max()
    # 9e-16 were found for SGD; AdamW divides by roots of moments, which amplify rounding.
    assert float(apart) <= (5e-15 if kind == "SGD" else 1e-11)
    assert float((start - model.weight.detach()).abs().max()) > 0.01
    spec: Any = plan.entries[0].spec
    assert spec.identity is identity


def test_the_multiplier_of_repopt_is_not_the_plain_step() -> None:
    model = network()
    train(model, optimizer_of(model, "repopt", "SGD"))
    assert far(model, by_hand("SGD", plain)) > 1e-3


@of_kinds
def test_repopt_leaves_gradients_as_they_are(kind: str) -> None:
    model, other = network(), network()
    opt = optimizer_of(model, "repopt", kind)
    for student in (model, other):
        student(torch.ones(2, 3, 5, 5).double()).square().mean().backward()
    before = model.get_parameter(KEYS[0]).grad
    opt.step()
    assert model.get_parameter(KEYS[0]).grad is before
    close_grads(model, other)


def close_grads(one: nn.Module, other: nn.Module) -> None:
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert left.grad is not None and right.grad is not None
        assert torch.equal(left.grad, right.grad)
