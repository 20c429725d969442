"""A class is tried with the user's groups; one that takes matrices only gets cores as matrices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import InputError
from opdf_compile.training.optimizer.probing import probe


class TwoRules(torch.optim.Optimizer):
    """Each group says which rule is its own, and has the keys of that rule and no others."""

    KEYS = {True: {"params", "lr", "momentum", "big"}, False: {"params", "lr", "big"}}

    def __init__(self, params: Any) -> None:
        for group in params:
            assert "big" in group, "each group needs 'big'"
            group.setdefault("lr", 0.02 if group["big"] else 0.1)
            if group["big"]:
                group.setdefault("momentum", 0.9)
            assert group.keys() == self.KEYS[group["big"]]
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad.sign() if group["big"] else p.grad, alpha=-group["lr"])


X = torch.linspace(-1, 1, 48, dtype=torch.float64).view(6, 8).sin()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def groups(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in model.parameters() if (p.ndim > 1) is big], "big": big}
        for big in (True, False)
    ]


def train(model: nn.Module, opt: Any) -> None:
    opt.zero_grad()
    model(X).square().mean().backward()
    opt.step()


def matrices_of(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.ndim > 1]


def test_options_that_a_class_wants_in_every_group() -> None:
    model = network()
    opt = opdf.Overparam(groups(model), TwoRules, module=model, cores=3)
    assert [group["lr"] for group in opt.param_groups] == [0.02, 0.1]
    assert opt.param_groups[0]["momentum"] == 0.9
    cores = [core.detach().clone() for core in opt.program.cores("0.weight")]
    bias = model[0].bias.detach().clone()
    train(model, opt)
    grad = model[0].bias.grad
    assert grad is not None
    assert torch.allclose(model[0].bias, bias - 0.1 * grad)
    for core, before in zip(opt.program.cores("0.weight"), cores, strict=True):
        assert torch.allclose((core - before).abs(), torch.tensor(0.02).double())
    opt.param_groups[0]["lr"] = 0.0
    held = [core.detach().clone() for core in opt.program.cores("0.weight")]
    train(model, opt)
    assert all(map(torch.equal, held, opt.program.cores("0.weight")))


def test_what_the_class_misses_is_said_in_its_words() -> None:
    model = network()
    with pytest.raises(
        InputError, match=r"TwoRules refuses the options \(none\): each group needs"
    ):
        opdf.Overparam(model, TwoRules, cores=3)
    wrong = [{**group, "betas": (0.9, 0.99)} for group in groups(model)]
    with pytest.raises(InputError, match=r"refuses the 2 param groups .*groups big, betas: "):
        opdf.Overparam(wrong, TwoRules, module=model, cores=3)


class Decays(torch.optim.SGD):
    """Has its options in the groups and none among its defaults."""

    def __init__(self, params: Any) -> None:
        for group in params:
            group.setdefault("weight_decay", 0.25)
        super().__init__(params, lr=0.5)
        self.defaults = {k: v for k, v in self.defaults.items() if k not in ("lr", "weight_decay")}


def test_decay_that_only_the_groups_know_of_is_that_of_w() -> None:
    model = network()
    opt = opdf.Overparam([{"params": model.parameters()}], Decays, module=model, cores=3)
    start = model[0].weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    assert torch.allclose(model[0].weight, 0.875 * start, rtol=1e-12, atol=0)


def test_the_trial_leaves_the_users_groups_and_tensors_alone() -> None:
    rate = torch.tensor(0.5)

    class Writes(torch.optim.SGD):
        def __init__(self, params: Any, lr: Any) -> None:
            super().__init__(params, lr=lr)
            self.param_groups[0]["lr"].zero_()

    given = [{"params": [nn.Parameter(torch.ones(3))], "tag": 1}]
    found = probe(Writes, {"lr": rate}, given)
    assert float(rate) == 0.5 and given[0].keys() == {"params", "tag"}
    assert not found.matrices and found.groups[0]["tag"] == 1
    assert found.shown({"lr": rate}, given)[0]["lr"] is rate


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with equal singular values 1: the limit of Muon's iteration."""
    left, _values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


class Exact(torch.optim.Optimizer):
    """Muon's idea without its iteration: steps along the orthogonal part of a momentum."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("matrices only")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state.setdefault("momentum", torch.zeros_like(p)).mul_(0.9).add_(p.grad)
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(group["lr"] * orthogonal(state["momentum"]))


def test_cores_are_stepped_as_matrices_of_two_bonds_each() -> None:
    """Two steps against a gradient made with einsum and the orthogonal part made with an SVD."""
    model = network()
    opt = opdf.Overparam(
        matrices_of(model), Exact, module=model, cores=3, lr=0.05, weight_decay=0.5
    )
    key = "0.weight"
    cores = [core.detach().clone() for core in opt.program.cores(key)]
    assert all(core.ndim == 4 for core in cores)
    momenta = [torch.zeros_like(core) for core in cores]
    for _ in range(2):
        leaves = [core.clone().requires_grad_() for core in cores]
        train(model, opt)
        weight = torch.einsum("aijb,bklc,cmnd->ikmjln", *leaves).reshape(8, 8)
        weight.backward(model[0].weight.grad)
        for k, leaf in enumerate(leaves):
            assert leaf.grad is not None
            momenta[k] = 0.9 * momenta[k] + leaf.grad
            left, out, into, right = leaf.shape
            update = orthogonal(momenta[k].reshape(left * out, into * right)).view_as(leaf)
            cores[k] = leaf.detach() * (1 - 0.05 * 0.5) ** (1 / 3) - 0.05 * update
    for found, wanted in zip(opt.program.cores(key), cores, strict=True):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-9)
    other = torch.einsum("aijb,bklc,cmnd->ikmjln", *cores).reshape(8, 8)
    assert torch.allclose(model[0].weight, other, rtol=0, atol=1e-9)


def test_torchs_muon_trains_resumes_and_folds() -> None:
    model, again = network(), network()
    muons = [
        opdf.Overparam(matrices_of(m), torch.optim.Muon, module=m, cores=3, lr=0.02)
        for m in (model, again)
    ]
    before = model(X).square().mean().item()
    for _ in range(5):
        train(model, muons[0])
    assert model(X).square().mean().item() < before
    state = muons[0].state_dict()
    shapes = [tuple(core.shape) for core in muons[0].program.cores("0.weight")]
    saved = state["state"][0]
    for k, shape in enumerate(shapes):
        assert tuple(saved[f"cores.{k}"].shape) == shape
        assert tuple(saved[f"cores.{k}.momentum_buffer"].shape) == shape
        assert tuple(muons[0].state[model[0].weight][f"cores.{k}"].shape) == shape
    again.load_state_dict(model.state_dict())
    muons[1].load_state_dict(copy.deepcopy(state))
    for m, opt in zip((model, again), muons, strict=True):
        train(m, opt)
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    assert torch.allclose(opdf.fold(muons[0])[0].weight, model[0].weight)


def test_a_class_of_matrices_still_takes_other_weights_and_refuses_biases() -> None:
    model = network()
    with pytest.raises(InputError, match=r"Exact refuses the student's '0.bias' of shape \(8,\)"):
        opdf.Overparam(model, Exact, cores=3)
    conv = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.Linear(8, 8, bias=False))
    opt = opdf.Overparam(conv, Exact, cores=3)
    assert {p.ndim for group in opt.inner.param_groups for p in group["params"]} == {2}
    conv[0](torch.randn(1, 8, 5, 5)).square().sum().backward()
    opt.step()
    assert torch.allclose(opdf.fold(opt)[0].weight, conv[0].weight, atol=1e-6)


def test_a_class_that_takes_any_shape_gets_cores_of_four_axes() -> None:
    opt = opdf.Overparam(network(), torch.optim.SGD, lr=0.1, cores=3, batched=False)
    assert {p.ndim for group in opt.inner.param_groups for p in group["params"]} == {1, 2, 4}, (
        "a bias, a small weight left alone, cores"
    )


class Flattens(Exact):
    """Takes any shape, and makes a matrix of a convolution's filters by itself."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        torch.optim.Optimizer.__init__(self, params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.ndim > 1:
                    update = orthogonal(p.grad.reshape(len(p), -1))
                    p.sub_(group["lr"] * self.laid(update, p))
                elif p.grad is not None:
                    p.sub_(group["lr"] * p.grad)

    def laid(self, update: Tensor, p: Tensor) -> Tensor:
        return update.view_as(p)


class Stumbles(Flattens):
    """The same, and it forgets to bring the filters' shape back."""

    def laid(self, update: Tensor, p: Tensor) -> Tensor:
        return update


class ByNorm(torch.optim.SGD):
    """Looks at a tensor as a whole, whatever its shape."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.div_(p.grad.square().sum().sqrt())
        return super().step(closure)


WANTS = {
    Exact: True,
    torch.optim.Muon: True,
    Flattens: True,
    Stumbles: True,
    ByNorm: False,
    torch.optim.Adafactor: False,
    torch.optim.LBFGS: False,
    torch.optim.AdamW: False,
}


@pytest.mark.parametrize("rate", [0.1, 0.0])
@pytest.mark.parametrize("make", WANTS)
def test_who_wants_matrices(make: Any, rate: float) -> None:
    """Also at the rate that a warm-up begins with."""
    state = torch.get_rng_state()
    assert probe(make, {"lr": rate}, [{}]).matrices is WANTS[make]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("make", [Flattens, Stumbles])
def test_one_that_makes_matrices_by_itself_makes_those_of_two_bonds(make: Any) -> None:
    model, twin = network(), network()
    opt = opdf.Overparam(matrices_of(model), make, module=model, cores=3, lr=0.05)
    other = opdf.Overparam(matrices_of(twin), Exact, module=twin, cores=3, lr=0.05)
    train(model, opt)
    train(twin, other)
    # One step: no momentum yet.
    assert torch.allclose(model[0].weight, twin[0].weight, rtol=0, atol=1e-12)


class OneEntry(torch.optim.SGD):
    """Takes what it is tried with, and nothing of a real size."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        if any(p.numel() > 64 for group in self.param_groups for p in group["params"]):
            raise RuntimeError("too large")


def test_what_only_the_real_cores_show_is_said_with_their_shapes() -> None:
    model = nn.Linear(32, 32, bias=False)
    with pytest.raises(InputError, match=r"OneEntry refuses the 1 param groups .*\(too large\)"):
        opdf.Overparam(model, OneEntry, cores=3)


class Counting(torch.optim.AdamW):
    """Counts in itself, not in its instances."""

    steps = 0
    seen: list[str] = []
    latest: Any

    def step(self, closure: Any = None) -> Any:
        Counting.steps += 1
        Counting.seen.append("step")
        Counting.latest = self
        return super().step(closure)


@pytest.mark.parametrize("with_closure", [False, True])
def test_trials_leave_what_a_class_counts_as_it_was(with_closure: bool) -> None:
    Counting.steps, Counting.seen[:] = 0, []
    model = network()
    opt = opdf.Overparam(model, Counting, lr=1e-2, weight_decay=0.1, cores=3)
    assert (Counting.steps, Counting.seen, hasattr(Counting, "latest")) == (0, [], False)

    def closure() -> Tensor:
        opt.zero_grad()
        loss: Tensor = model(X).square().mean()
        loss.backward()
        return loss

    closure()
    opt.step(closure if with_closure else None)
    assert (Counting.steps, Counting.seen) == (1, ["step"])
    assert Counting.latest is opt.inner
    del Counting.latest


class OfModel(torch.optim.SGD):
    """Reads the parameters out of a model."""

    def __init__(self, model: Any, lr: float = 0.1) -> None:
        super().__init__([p for _, p in model.named_parameters()], lr=lr)


class OfTensors(torch.optim.SGD):
    """Counts the entries of what it is given, which a group has not."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        given = list(params)
        self.entries = sum(p.numel() for p in given)
        super().__init__(given, lr=lr)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (
            OfModel,
            "OfModel takes a model and no parameters, wanted a class that takes param groups",
        ),
        (OfTensors, "OfTensors takes parameters and no param groups, wanted a class"),
    ],
)
def test_a_class_that_takes_something_else_than_groups(kind: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        opdf.Overparam(network(), kind, lr=0.1)
    with pytest.raises(InputError, match="refuses the options nonsense"):
        opdf.Overparam(network(), torch.optim.SGD, nonsense=1)
