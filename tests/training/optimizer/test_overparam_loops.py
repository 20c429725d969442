"""Overparam inside training loops: loss scaling, autocast, schedulers, averages, wrappers, hooks.

What a loop does to any optimizer it does to this one; a plain SGD or AdamW beside it is the oracle
where the two must agree, and the rest is checked by its own arithmetic.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from quick import covering, quick
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

import opdf_compile as opdf
from opdf_compile.errors import WeightsChanged


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 12))


X = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.items())


def far(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max(float((value - right[name]).abs().max()) for name, value in left.items())


def scaled_steps(model: nn.Module, opt: Any, dtype: torch.dtype, steps: int) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=dtype is torch.float16)
    for _ in range(steps):
        opt.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = model(X).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(opt)
        scaler.update()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_loss_scaling(dtype: torch.dtype) -> None:
    runs = {}
    for kind, used in (("half", dtype), ("single", torch.float32)):
        model = network()
        opt = opdf.Overparam(model, torch.optim.SGD, cores=3, lr=0.1)
        before = weights(model)
        if used is torch.float32:
            for _ in range(6):
                opt.zero_grad()
                model(X).square().mean().backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                opt.step()
        else:
            scaled_steps(model, opt, used, 6)
        runs[kind] = weights(model)
        assert far(before, runs[kind]) > 0.01
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    # Half precision has a relative error of 2^-9 at worst in what each step adds.
    assert far(runs["half"], runs["single"]) < 2.0**-9 * 6


def test_the_cores_are_composed_in_single_precision_under_autocast() -> None:
    model = network()
    opt = opdf.Overparam(model, torch.optim.SGD, cores=3, lr=0.0)
    before = weights(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(X).square().mean().backward()
        opt.step()
    # In bfloat16 the product of three cores would be off by about 2^-8.
    assert far(before, weights(model)) < 1e-6


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_after_an_overflow_moves_nothing(fused: bool) -> None:
    model = network()
    opt = opdf.Overparam(model, torch.optim.AdamW, cores=3, lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(factor: float) -> None:
        opt.zero_grad()
        scaler.scale(model(X).square().mean() * factor).backward()
        scaler.step(opt)
        scaler.update()

    step(1.0)
    before, state = weights(model), copy.deepcopy(opt.state_dict())
    step(float("inf"))
    assert scaler.get_scale() == 2.0**9, "the control: it overflowed"
    assert same(before, weights(model))
    for index, kept in opt.state_dict()["state"].items():
        for key, value in kept.items():
            assert torch.equal(value, state["state"][index][key]), key
    step(1.0)
    moved = weights(model)
    assert far(before, moved) > 0.01
    # The next step is that of a run without the overflow.
    other = network()
    again = opdf.Overparam(other, torch.optim.AdamW, cores=3, lr=0.1, fused=fused)
    for _ in range(2):
        again.zero_grad()
        (other(X).square().mean()).backward()
        again.step()
    assert far(moved, weights(other)) < 1e-5


def lambda_of(opt: Any) -> Any:
    return schedules.LambdaLR(opt, lambda step: 1 / (1 + step))


SCHEDULES: dict[str, Any] = {
    "StepLR": lambda opt: schedules.StepLR(opt, 2, 0.5),
    "LambdaLR": lambda_of,
    "Cosine": lambda opt: schedules.CosineAnnealingLR(opt, 5),
    "OneCycle": lambda opt: schedules.OneCycleLR(opt, 0.1, total_steps=12),
    "Cyclic": lambda opt: schedules.CyclicLR(opt, 0.01, 0.1, 2, cycle_momentum=True),
    "Plateau": lambda opt: schedules.ReduceLROnPlateau(opt, patience=0, threshold=10.0),
    "Sequential": lambda opt: schedules.SequentialLR(
        opt, [schedules.LinearLR(opt, 0.1), schedules.ExponentialLR(opt, 0.7)], [3]
    ),
    "Chained": lambda opt: schedules.ChainedScheduler(
        [schedules.ConstantLR(opt, 0.5), schedules.ExponentialLR(opt, 0.7)]
    ),
    "SWALR": lambda opt: SWALR(opt, swa_lr=0.02, anneal_epochs=3),
}


def options_of(optimizer: Any) -> dict[str, Any]:
    return {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}


@pytest.mark.parametrize(("name", "tensor"), covering(SCHEDULES, [False, True]))
def test_a_schedule_sets_what_it_sets_in_a_plain_optimizer(name: str, tensor: bool) -> None:
    model, twin = network(), network()
    rate = torch.tensor(0.05) if tensor else 0.05
    opt = opdf.Overparam(model, torch.optim.AdamW, cores=3, lr=rate)
    plain = torch.optim.AdamW(twin.parameters(), lr=rate.clone() if tensor else rate)
    pairs = [(model, opt, SCHEDULES[name](opt)), (twin, plain, SCHEDULES[name](plain))]
    seen = []
    with warnings.catch_warnings():
        # A schedule called before the first step would make torch warn that step was not called.
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Converting a tensor", UserWarning)
        warnings.filterwarnings("ignore", message=".*epoch parameter.*")
        for _ in range(6):
            used = []
            for net, optimizer, schedule in pairs:
                optimizer.zero_grad()
                net(X).square().mean().backward()
                used.append({k: copy.deepcopy(v) for k, v in options_of(optimizer).items()})
                optimizer.step()
                if optimizer is opt:
                    stepped = [float(group["lr"]) for group in opt.inner.param_groups]
                schedule.step(*((1.0,) if name == "Plateau" else ()))
            assert used[0] == used[1]
            assert set(stepped) == {float(used[0]["lr"])}, "the cores' own rate"
            assert all(g["betas"] == used[0]["betas"] for g in opt.inner.param_groups)
            seen.append(float(used[0]["lr"]))
    assert len(set(seen)) > 2, "the control: the schedule changes the rate"


def test_an_average_swaps_in_and_out() -> None:
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 12))
    opt = opdf.Overparam(model, torch.optim.AdamW, cores=3, lr=0.05)
    average = AveragedModel(model)
    seen = []
    for _ in range(4):
        opt.zero_grad()
        model(X).square().mean().backward()
        opt.step()
        average.update_parameters(model)
        seen.append(model[0].weight.detach().clone())
    assert torch.allclose(average.module[0].weight, torch.stack(seen).mean(0), atol=1e-6)
    update_bn([X], average)
    own = copy.deepcopy(model.state_dict())
    model.load_state_dict(average.module.state_dict())
    model.eval()(X)
    with pytest.raises(WeightsChanged):
        opt.step()
    model.load_state_dict(own)
    model.train()
    opt.zero_grad()
    model(X).square().mean().backward()
    opt.step()
    assert not torch.equal(model[0].weight, own["0.weight"])


@pytest.mark.parametrize("backend", quick(["eager", "aot_eager"], {"eager"}))
def test_a_compiled_model_trains_as_the_plain_one(backend: str) -> None:
    results = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = network()
        called = torch.compile(model, backend=backend) if compiled else model
        opt = opdf.Overparam(called, torch.optim.AdamW, cores=3, lr=0.05)
        if compiled:
            opt.program.compile(backend=backend)
        for _ in range(3):
            opt.zero_grad()
            called(X).square().mean().backward()
            opt.step()
        results.append(weights(model))
    assert far(*results) < 1e-6
    assert isinstance(opdf.fold(opt), nn.Sequential)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrappers_are_looked_through(wrap: Any) -> None:
    model = network()
    opt = opdf.Overparam(wrap(model), torch.optim.SGD, cores=3, lr=0.1)
    assert opt.program.module is model
    assert [entry.key for entry in opt.plan.entries] == ["0.weight", "2.weight"]


def test_gradient_checkpointing() -> None:
    results = []
    for saving in (False, True):
        model = network()
        opt = opdf.Overparam(model, torch.optim.AdamW, cores=3, lr=0.05)
        for _ in range(3):
            opt.zero_grad()
            hidden = model[:2]
            y = checkpoint(hidden, X, use_reentrant=False) if saving else hidden(X)
            model[2](y).square().mean().backward()
            opt.step()
        results.append(weights(model))
    assert same(*results)


def test_step_hooks_run_once_and_in_order() -> None:
    model = network()
    opt = opdf.Overparam(model, torch.optim.SGD, cores=3, lr=0.1)
    seen: list[str] = []
    start = model[0].weight.detach().clone()

    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        assert optimizer is opt
        seen.append("before" if torch.equal(model[0].weight, start) else "late")

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        seen.append("early" if torch.equal(model[0].weight, start) else "after")

    handles = opt.register_step_pre_hook(before), opt.register_step_post_hook(after)
    model(X).square().mean().backward()
    opt.step()
    assert seen == ["before", "after"]
    for handle in handles:
        handle.remove()
    opt.step()
    assert len(seen) == 2


def test_a_bfloat16_student_has_cores_in_single_precision() -> None:
    model = network().bfloat16()
    opt = opdf.Overparam(model, torch.optim.AdamW, cores=3, lr=1e-4, weight_decay=0.0)
    for _ in range(20):
        opt.zero_grad()
        model(X.bfloat16()).float().square().mean().backward()
        opt.step()
    state = opt.state_by_name()
    assert {v.dtype for k, v in state["0.weight"].items() if "step" not in k} == {torch.float32}
    assert state["0.bias"]["exp_avg"].dtype == torch.bfloat16
    assert model[0].weight.dtype == torch.bfloat16
    again = opdf.Overparam(model, torch.optim.AdamW, cores=3, lr=1e-4)
    again.load_state_dict(opt.state_dict())
    for name, kept in again.state_by_name().items():
        for key, value in kept.items():
            assert value.dtype == state[name][key].dtype, (name, key)
            assert torch.equal(value, state[name][key]), (name, key)


def test_a_student_moved_away_from_its_cores_is_named() -> None:
    model = network()
    opt = opdf.Overparam(model, torch.optim.SGD, cores=3, lr=0.1)
    model.double()
    with pytest.raises(opdf.UserError, match=r"weights changed|dtype"):
        opt.step()
