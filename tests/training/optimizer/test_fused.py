"""Fused kernels lent for a step: the same trajectory, the user's own options, and what they spare.

The oracle is torch's own single-tensor step (`foreach=False`), float64: 1e-12 of the weight, the
rounding of a few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from quick import covering
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.training.optimizer.fused import fused

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "Adam": (torch.optim.Adam, {"lr": 0.02, "weight_decay": 0.1}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}),
    "AdamW amsgrad maximize": (torch.optim.AdamW, {"lr": 2e-3, "amsgrad": True, "maximize": True}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.02, "lr_decay": 0.1}),
}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many tensors each call of a fused kernel took."""
    calls: list[int] = []

    def counted(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def run(params: list[Tensor], *args: Any, **options: Any) -> Any:
            calls.append(len(params))
            return kernel(params, *args, **options)

        return run

    for name in ("_fused_adam_", "_fused_adamw_", "_fused_adagrad_"):
        monkeypatch.setattr(torch, name, counted(getattr(torch, name)))
    yield calls


def student() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12)).double()


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 5) -> nn.Module:
    x = torch.randn(8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(count):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model


def difference(left: nn.Module, right: nn.Module) -> float:
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_trajectory_is_that_of_single_tensors(name: str, kernels: list[int]) -> None:
    make, options = OPTIMIZERS[name]
    found, wanted = student(), student()
    opt = opdf.Overparam(found, make, cores=3, **options)
    steps(found, opt)
    # Six cores, and of the two biases none.
    assert kernels == [6] * 5
    kernels.clear()
    steps(wanted, opdf.Overparam(wanted, make, cores=3, foreach=False, **options))
    assert not kernels, "what the user asks for is done"
    assert difference(found, wanted) < 1e-12
    assert difference(found, student()) > 1e-3, "the control: it moved"


@pytest.mark.parametrize("form", ["ham", "hyperball"])
def test_planned_weights_without_cores_have_them_too(form: str, kernels: list[int]) -> None:
    found, wanted = student(), student()
    for model, foreach, calls in ((found, None, [2] * 5), (wanted, False, [])):
        plan = opdf.plan(model, parametrization=form, min_size=1)
        steps(model, opdf.Overparam(model, torch.optim.AdamW, plan=plan, lr=0.02, foreach=foreach))
        assert kernels == calls
        kernels.clear()
    assert difference(found, wanted) < 1e-12
    assert difference(found, student()) > 1e-3, "the control: it moved"


def test_options_and_states_are_those_of_single_tensors(kernels: list[int]) -> None:
    model, again = student(), student()
    opt = opdf.Overparam(model, torch.optim.AdamW, cores=3)
    single = opdf.Overparam(again, torch.optim.AdamW, cores=3, foreach=False)
    # From either to the other, and back.
    for turn in range(3):
        steps(model, opt)
        assert kernels
        kernels.clear()
        again.load_state_dict(model.state_dict())
        single.load_state_dict(opt.state_dict())
        single.param_groups[0]["foreach"] = False  # Options come with a state.
        steps(again, single)
        steps(model, opt)
        assert difference(model, again) < 1e-12, f"turn {turn}"
        model.load_state_dict(again.state_dict())
        opt.load_state_dict(single.state_dict())
        opt.param_groups[0]["foreach"] = None
        kernels.clear()
    steps(model, opt)
    for optimizer in (opt, opt.inner):
        assert all(group["fused"] is None for group in optimizer.param_groups)
    kept = (o.inner.state[o.inner.param_groups[0]["params"][0]] for o in (opt, single))
    forms = [{key: (value.dtype, value.shape) for key, value in k.items()} for k in kept]
    assert forms[0] == forms[1]


def ids(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def parameter(layout: str = "rows") -> nn.Parameter:
    """A parameter with a gradient that may lie otherwise in memory."""
    torch.manual_seed(0)
    made = nn.Parameter(torch.randn(4, 6, dtype=torch.float64))
    values = torch.randn(4, 6, dtype=torch.float64)
    made.grad = values if layout == "rows" else values.t().contiguous().t()
    return made


def stepped(p: nn.Parameter, **options: Any) -> tuple[torch.optim.AdamW, Tensor]:
    optimizer = torch.optim.AdamW([p], lr=0.1, **options)
    with fused(optimizer, ids(optimizer)):
        optimizer.step()
    return optimizer, p.detach()


def test_a_gradient_that_lies_otherwise_is_stepped_by_torch(kernels: list[int]) -> None:
    _optimizer, found = stepped(parameter("columns"))
    assert not kernels
    _optimizer, wanted = stepped(parameter())
    assert kernels == [1]
    assert torch.allclose(found, wanted, rtol=0, atol=1e-15)
    # The control: torch itself does not look.
    wrong = parameter("columns")
    torch.optim.AdamW([wrong], lr=0.1, fused=True).step()
    assert not torch.allclose(wrong.detach(), wanted, atol=1e-3)


@pytest.mark.parametrize("key", ["exp_avg", "step"])
def test_a_state_of_another_form_is_stepped_by_torch(key: str, kernels: list[int]) -> None:
    p = parameter()
    optimizer, _found = stepped(p)
    state = optimizer.state[p]
    state[key] = state[key].half() if key == "step" else state[key].t().contiguous().t()
    del kernels[:]
    with fused(optimizer, ids(optimizer)):
        optimizer.step()
    assert not kernels


def test_a_count_of_64_bits_is_counted_on(kernels: list[int]) -> None:
    """It begins so where torch's default dtype has as many and the first step was torch's own."""
    wide, usual = parameter(), parameter()
    for p in (wide, usual):
        optimizer, _found = stepped(p)
        if p is wide:
            optimizer.state[p]["step"] = optimizer.state[p]["step"].double()
        with fused(optimizer, ids(optimizer)):
            optimizer.step()
        assert optimizer.state[p]["step"] == 2
    assert kernels == [1] * 4
    assert torch.equal(wide, usual)


@pytest.mark.parametrize(
    "options",
    [
        {"foreach": False},
        {"foreach": True},
        {"fused": False},
        {"capturable": False, "differentiable": True},
        {"lr": torch.tensor(0.1)},
        {"lr": None},
    ],
    ids=str,
)
def test_other_options_are_left_alone(options: dict[str, Any]) -> None:
    optimizer = torch.optim.AdamW([parameter()], lr=0.1)
    group = optimizer.param_groups[0]
    group.update(options)
    before = dict(group)
    with fused(optimizer, ids(optimizer)):
        assert group == before
    assert group == before


def test_a_group_with_other_parameters_is_left_alone() -> None:
    first, second = parameter(), parameter()
    optimizer = torch.optim.AdamW([{"params": [first]}, {"params": [second]}])
    with fused(optimizer, {id(first)}):
        assert [group["fused"] for group in optimizer.param_groups] == [True, None]
    with fused(optimizer, set()):
        assert [group["fused"] for group in optimizer.param_groups] == [None, None]


def test_a_class_of_somebody_else_is_left_alone() -> None:
    class Own(torch.optim.AdamW):
        pass

    optimizer = Own([parameter()])
    with fused(optimizer, ids(optimizer)):
        assert optimizer.param_groups[0]["fused"] is None


def test_a_write_is_counted_and_a_step_that_failed_counts_what_moved() -> None:
    first, second = parameter(), parameter()
    optimizer = torch.optim.AdamW([{"params": [first]}, {"params": [second], "eps": 1e-8}])
    with fused(optimizer, ids(optimizer)):
        optimizer.step()
    assert (first._version, second._version) == (1, 1)
    optimizer.param_groups[1]["lr"] = None  # Torch's own step takes this group, and stops.
    with pytest.raises(TypeError), fused(optimizer, ids(optimizer)):
        optimizer.step()
    assert (first._version, second._version) == (2, 1)
    assert all(group["fused"] is None for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("form", "built"), covering(["hyperball", "md", "mpo"], [True, False, None])
)
def test_a_run_goes_on_in_another_memory_layout(form: str, built: bool | None) -> None:
    """Saved with plain weights, loaded into channels_last ones, the user's fused kernels all along.

    torch's own load keeps a state as it lay, and its kernels on a CPU pair up what lies alike. The
    option comes with the state, so `built`, what the second optimizer is built with, is no matter.
    """

    def conv() -> nn.Conv2d:
        torch.manual_seed(4)
        return nn.Conv2d(3, 4, 3).double()

    x = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def go(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(4):
            optimizer.zero_grad()
            (model(x) - 1).square().mean().backward()
            optimizer.step()

    def run(asked: bool) -> nn.Module:
        def wrapped(model: nn.Module, fused: bool | None) -> opdf.Overparam:
            plan = opdf.plan(model, parametrization=form)
            return opdf.Overparam(model, torch.optim.AdamW, plan=plan, lr=1e-2, fused=fused)

        first = conv()
        saved = wrapped(first, asked)
        go(first, saved)
        again = conv()
        again.load_state_dict(first.state_dict())
        again = again.to(memory_format=torch.channels_last)
        loaded = wrapped(again, built)
        loaded.load_state_dict(saved.state_dict())
        assert all(group["fused"] is asked for group in loaded.inner.param_groups)
        go(again, loaded)
        return again

    assert difference(run(True), run(False)) < 1e-12
