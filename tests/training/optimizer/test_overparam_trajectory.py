"""Overparam against an oracle that shares no code with it: a chain in the forward, and plain torch.

    y = second(tanh(first(x))),  W = einsum("aijb,bklc,cmnd->ikmjln", T_1, T_2, T_3)

Everything is float64. Both do the same operations in another order, so they differ by rounding,
about 1e-16 a step; 1e-10 of the weight leaves room for what training amplifies, and every wrong
answer below is off by 1e-6 and more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import opdf_compile as opdf

CLOSE = 1e-10


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12)).double()


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    for _ in range(count):
        yield tuple(torch.randn(8, 12, dtype=torch.float64, generator=generator) for _ in "xy")


class Chain:
    """The inline form by hand: leaves for cores and biases, einsum in the forward."""

    def __init__(self, student: nn.Module, cores: dict[str, tuple[Tensor, ...]]) -> None:
        self.student = student
        self.cores = {
            key: [core.detach().clone().requires_grad_() for core in found]
            for key, found in cores.items()
        }
        self.rest = {
            name: p.detach().clone().requires_grad_()
            for name, p in student.named_parameters()
            if name not in cores
        }
        self.shapes = {name: p.shape for name, p in student.named_parameters()}

    def weight(self, key: str) -> Tensor:
        made = torch.einsum("aijb,bklc,cmnd->ikmjln", *self.cores[key])
        return made.reshape(self.shapes[key])

    def weights(self) -> dict[str, Tensor]:
        return {**{key: self.weight(key) for key in self.cores}, **self.rest}

    def parameters(self) -> list[Tensor]:
        return [*self.rest.values(), *(core for cores in self.cores.values() for core in cores)]

    def __call__(self, x: Tensor) -> Tensor:
        return functional_call(self.student, self.weights(), (x,))


def cores_of(opt: opdf.Overparam) -> dict[str, tuple[Tensor, ...]]:
    return {entry.key: opt.program.cores(entry.key) for entry in opt.plan.entries}


def error(student: nn.Module, chain: Chain) -> float:
    """The largest error of a parameter, relative to its largest entry."""
    found = dict(student.named_parameters())
    return max(
        float((found[name] - wanted).detach().abs().max() / wanted.detach().abs().max())
        for name, wanted in chain.weights().items()
    )


def loss_of(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def pair(make: Any, **options: Any) -> tuple[nn.Module, opdf.Overparam, Chain, Any]:
    student = network()
    over = {k: options.pop(k) for k in ("decay", "batched", "recompute") if k in options}
    opt = opdf.Overparam(student, make, cores=3, **over, **options)
    chain = Chain(student, cores_of(opt))
    return student, opt, chain, make(chain.parameters(), **options)


def train(student: Any, opt: Any, chain: Any, plain: Any, steps: int = 8) -> None:
    for x, y in batches(steps):
        for model, optimizer in ((student, opt), (chain, plain)):
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            optimizer.step()


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 0.1}),
    "SGD momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "SGD maximize": (torch.optim.SGD, {"lr": 0.01, "maximize": True}),
    "Adam": (torch.optim.Adam, {"lr": 0.01}),
    "Adam amsgrad": (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.0}),
    "AdamW fused": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.0, "fused": True}),
    "AdamW foreach": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.0, "foreach": True}),
    "AdamW for loop": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.0, "foreach": False}),
    "AdamW lr tensor": (torch.optim.AdamW, {"lr": torch.tensor(0.01), "weight_decay": 0.0}),
    "NAdam": (torch.optim.NAdam, {"lr": 0.01}),
    "RAdam": (torch.optim.RAdam, {"lr": 0.01}),
    "Adamax": (torch.optim.Adamax, {"lr": 0.01}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.01, "initial_accumulator_value": 0.1}),
    "Adadelta": (torch.optim.Adadelta, {"lr": 1.0}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.001, "centered": True, "momentum": 0.5}),
    "Rprop": (torch.optim.Rprop, {"lr": 0.001}),
    "ASGD": (torch.optim.ASGD, {"lr": 0.01, "t0": 2}),
    "Adafactor": (torch.optim.Adafactor, {"lr": 0.01, "weight_decay": 0.0}),
}
REFUSED = {"SparseAdam", "Muon"}


def test_every_optimizer_of_torch_is_accounted_for() -> None:
    named = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    } - {"Optimizer"}
    assert named == {make.__name__ for make, _options in OPTIMIZERS.values()} | REFUSED | {"LBFGS"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_trajectory_is_that_of_a_chain_in_the_forward(name: str) -> None:
    make, options = OPTIMIZERS[name]
    options = {k: v.clone() if isinstance(v, Tensor) else v for k, v in options.items()}
    student, opt, chain, plain = pair(make, decay="cores", **options)
    start = student[0].weight.detach().clone()
    train(student, opt, chain, plain)
    assert error(student, chain) < CLOSE
    assert (student[0].weight - start).abs().max() > 1e-4, "the control: it moves"


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_batching_and_recomputing_change_nothing(batched: bool, recompute: bool) -> None:
    square = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12)).double()
    opt = opdf.Overparam(
        square, torch.optim.Adam, cores=3, batched=batched, recompute=recompute, lr=0.01
    )
    assert [unit.batched for unit in opt.program.units] == ([True] if batched else [False, False])
    chain = Chain(square, cores_of(opt))
    train(square, opt, chain, torch.optim.Adam(chain.parameters(), lr=0.01))
    assert error(square, chain) < CLOSE


def test_the_oracle_tells_one_step_more_from_one_less() -> None:
    student, opt, chain, plain = pair(torch.optim.Adam, lr=0.01)
    train(student, opt, chain, plain, steps=1)
    assert error(student, chain) < CLOSE
    plain.step()
    assert error(student, chain) > 1e-6


def test_the_trajectory_is_that_of_the_inline_form() -> None:
    student = network()
    traced = opdf.trace(student, (next(batches(1))[0],))
    plan = opdf.plan(traced, cores=3)
    inline = opdf.expand(traced, plan)
    opt = opdf.Overparam(student, torch.optim.Adam, plan=plan, lr=0.01)
    train(student, opt, inline, torch.optim.Adam(inline.parameters(), lr=0.01))
    folded = opdf.fold(inline)
    for place in (0, 2):
        wanted = folded[place].weight
        assert (student[place].weight - wanted).abs().max() < CLOSE * wanted.abs().max()


def closure_of(
    model: Any, optimizer: Any, x: Tensor, y: Tensor, calls: list[float], clears: Any = None
) -> Any:
    def closure() -> Tensor:
        (clears or optimizer).zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        calls.append(loss.item())
        return loss

    return closure


@pytest.mark.parametrize("through_module", [False, True])
@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_is_that_of_a_chain_in_the_forward(
    line_search: str | None, through_module: bool
) -> None:
    options = {"lr": 0.3, "max_iter": 6, "history_size": 4, "line_search_fn": line_search}
    student, opt, chain, plain = pair(torch.optim.LBFGS, **options)
    (x, y), losses = next(batches(1)), {}
    for name, model, optimizer in (("over", student, opt), ("chain", chain, plain)):
        calls: list[float] = []
        for _ in range(3):
            first = len(calls)
            clears = student if through_module and name == "over" else optimizer
            loss = optimizer.step(closure_of(model, optimizer, x, y, calls, clears))
            assert loss.item() == calls[first]
        losses[name] = calls
    assert len(losses["over"]) > 10, "the control: each step evaluates more than once"
    assert losses["over"] == pytest.approx(losses["chain"], rel=1e-8)
    # A line search turns rounding into other step lengths: looser than one step of an optimizer.
    assert error(student, chain) < 1e-6
    assert losses["over"][-1] < 0.9 * losses["over"][0]


def test_a_closure_under_adamw_is_a_step() -> None:
    options = {"lr": 0.01, "weight_decay": 0.1}
    (x, y), weights = next(batches(1)), []
    start = network()
    for with_closure in (True, False):
        student = network()
        student.load_state_dict(start.state_dict())
        opt = opdf.Overparam(student, torch.optim.AdamW, cores=3, **options)
        for _ in range(3):
            calls: list[float] = []
            closure = closure_of(student, opt, x, y, calls)
            if with_closure:
                assert opt.step(closure).item() == calls[0]
            else:
                closure()
                assert opt.step() is None
        weights.append(student[0].weight.detach().clone())
    assert torch.equal(*weights)


def test_accumulated_gradients_are_those_of_the_joined_batch() -> None:
    student, opt, chain, plain = pair(torch.optim.SGD, lr=0.1, momentum=0.9)
    for x, y in batches(4):
        opt.zero_grad()
        for part in range(4):
            rows = slice(2 * part, 2 * part + 2)
            (loss_of(student, x[rows], y[rows]) / 4).backward()
        opt.step()
        plain.zero_grad()
        loss_of(chain, x, y).backward()
        plain.step()
    assert error(student, chain) < CLOSE


def test_clipping_acts_on_the_gradient_of_the_weight() -> None:
    student, opt, chain, plain = pair(torch.optim.SGD, lr=0.1, momentum=0.9)
    for x, y in batches(4):
        opt.zero_grad()
        loss_of(student, x, y).backward()
        norm = nn.utils.clip_grad_norm_(student.parameters(), 0.05)
        assert norm > 0.1, "the control: it clips"
        opt.step()
        # By hand: dL/dW of every weight, scaled, then pulled through the chain.
        weights = chain.weights()
        loss = loss_of(lambda x, w=weights: functional_call(student, w, (x,)), x, y)
        grads = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
        total = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
        scaled = [grad * min(1.0, 0.05 / float(total + 1e-6)) for grad in grads]
        plain.zero_grad()
        torch.autograd.backward(list(weights.values()), scaled)
        plain.step()
    assert error(student, chain) < CLOSE


def test_weights_keep_their_gradients_until_they_are_cleared() -> None:
    student, opt, chain, plain = pair(torch.optim.SGD, lr=0.1)
    (x, y), (x2, y2) = batches(2)
    loss_of(student, x, y).backward()
    grad = student[0].weight.grad.clone()
    opt.step()
    assert torch.equal(student[0].weight.grad, grad)
    assert all(core.grad is None for unit in opt.program.units for core in unit.storage)
    # Not cleared, the next backward adds to it, as it does under any optimizer.
    loss_of(student, x2, y2).backward()
    assert not torch.equal(student[0].weight.grad, grad)
    opt.zero_grad(set_to_none=False)
    assert torch.equal(student[0].weight.grad, torch.zeros_like(grad))
    opt.zero_grad()
    assert all(p.grad is None for p in student.parameters())


def module_clears(student: nn.Module, opt: opdf.Overparam) -> None:
    student.zero_grad()


def by_hand(student: nn.Module, opt: opdf.Overparam) -> None:
    for parameter in student.parameters():
        parameter.grad = None


def to_zero(student: nn.Module, opt: opdf.Overparam) -> None:
    opt.zero_grad(set_to_none=False)


@pytest.mark.parametrize("clear", [module_clears, by_hand, to_zero])
def test_gradients_may_be_cleared_through_the_module(clear: Any) -> None:
    student, opt, chain, plain = pair(torch.optim.SGD, lr=0.1, momentum=0.9)
    for x, y in batches(5):
        loss_of(student, x, y).backward()
        opt.step()
        clear(student, opt)
        plain.zero_grad()
        loss_of(chain, x, y).backward()
        plain.step()
    assert error(student, chain) < CLOSE


def test_options_changed_between_steps_act_on_the_next() -> None:
    student, opt, chain, plain = pair(torch.optim.Adam, lr=0.01)
    for step, (x, y) in enumerate(batches(6)):
        for model, optimizer in ((student, opt), (chain, plain)):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (1 + step)
                group["betas"] = (0.9 - 0.1 * step, 0.99)
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            optimizer.step()
    assert error(student, chain) < CLOSE


def test_groups_have_rates_of_their_own() -> None:
    student = network()
    groups = [
        {"params": [student[0].weight], "lr": 0.1},
        {"params": [student[2].weight]},
        {"params": [student[0].bias, student[2].bias], "lr": 0.0},
    ]
    opt = opdf.Overparam(groups, torch.optim.SGD, module=student, cores=3, lr=0.01, momentum=0.5)
    chain = Chain(student, cores_of(opt))
    plain = torch.optim.SGD(
        [
            {"params": chain.cores["0.weight"], "lr": 0.1},
            {"params": chain.cores["2.weight"]},
            {"params": list(chain.rest.values()), "lr": 0.0},
        ],
        lr=0.01,
        momentum=0.5,
    )
    bias = student[0].bias.detach().clone()
    train(student, opt, chain, plain)
    assert error(student, chain) < CLOSE
    assert torch.equal(student[0].bias, bias)


def test_a_bias_alone_may_have_a_gradient() -> None:
    student, opt, _chain, _plain = pair(torch.optim.AdamW, lr=0.1)
    weights = [student[0].weight.detach().clone(), student[2].weight.detach().clone()]
    bias = student[2].bias.detach().clone()
    student[2].bias.grad = torch.ones_like(bias)
    opt.step()
    # AdamW's first step is lr times the gradient's sign, after decay by lr times 0.01.
    assert torch.allclose(student[2].bias, bias * (1 - 0.1 * 0.01) - 0.1, atol=1e-8)
    assert torch.equal(student[0].weight, weights[0])
    assert torch.equal(student[2].weight, weights[1])


def test_a_step_without_any_gradient_moves_not_a_bit() -> None:
    student = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12))
    opt = opdf.Overparam(student, torch.optim.AdamW, cores=3, lr=0.1)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    for _ in range(2):
        opt.step()
    assert all(torch.equal(p, before[name]) for name, p in student.named_parameters())


@pytest.mark.parametrize("options", [{"capturable": True}, {"differentiable": True}])
def test_what_torch_refuses_on_this_device_is_refused_in_its_words(options: dict[str, Any]) -> None:
    said = []
    for wrapped in (True, False):
        student = network()
        make = opdf.Overparam if wrapped else torch.optim.AdamW
        opt = make(student.parameters(), **options, **({"module": student} if wrapped else {}))
        loss_of(student, *next(batches(1))).backward()
        with pytest.raises((AssertionError, RuntimeError)) as caught:
            opt.step()
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_an_optimizer_of_ones_own_without_closures() -> None:
    class Own(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.sub_(p.grad, alpha=group["lr"])

    student, opt, chain, plain = pair(Own, lr=0.1)
    train(student, opt, chain, plain)
    assert error(student, chain) < CLOSE


def test_a_sparse_gradient_of_a_tied_embedding() -> None:
    class Tied(nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.table = nn.Embedding(24, 12, sparse=sparse)
            self.head = nn.Linear(12, 24, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids))

    ids, weights = torch.arange(5), []
    for sparse in (True, False):
        model = Tied(sparse)
        plan = opdf.plan(opdf.trace(model, (ids,)), cores=3, include=["*"])
        opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.5)
        for _ in range(2):
            opt.zero_grad()
            model.table(ids).square().mean().backward()
            assert model.table.weight.grad.is_sparse == sparse
            opt.step()
            assert model.table.weight.grad.is_sparse == sparse
        weights.append(model.table.weight.detach().clone())
    assert torch.allclose(*weights, rtol=0, atol=1e-7)
