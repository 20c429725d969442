"""What loops do to a module, done to the module form: the plain student is the measure."""

from __future__ import annotations

import copy
import functools
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import quick
from sites import Stack, batch, steps, stirred
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

import opdf_compile as opdf
from opdf_compile.errors import FoldError

# Sums over 54 taps, a few layers, in float64; both sides are of size 1.
CLOSE = {"rtol": 0.0, "atol": 1e-13}
SEEDS = range(4)


class Checkpointed(Stack):
    """Computes its body again in the backward, if it is told to."""

    reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return super().forward(x)
        made: Any = checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.head(made.flatten(2).mean(2))


def student() -> Any:
    torch.manual_seed(0)
    return stirred(Checkpointed()).double()


@functools.cache
def plan_of(form: str) -> opdf.Plan:
    return opdf.plan(opdf.trace(student(), (batch(),)), parametrization=form)


def branched(form: str) -> Any:
    return opdf.branch(student(), plan_of(form))


def inline(form: str) -> Any:
    traced = opdf.trace(student(), (batch(),))
    return opdf.expand(traced, plan_of(form))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", [branched, inline])
@pytest.mark.parametrize("form", quick(["repvgg", "dbb"], {"dbb"}))
def test_autocast_keeps_the_dtypes_of_the_plain_student(form: str, make: Any) -> None:
    """A branch in float32 would make all that follows float32, at twice the memory."""
    seen: dict[str, list[torch.dtype]] = {}
    for name, model in {"plain": student().float(), "training": make(form).float()}.items():
        kept = seen.setdefault(name, [])

        def pack(tensor: Tensor, kept: list[torch.dtype] = kept) -> Tensor:
            if tensor.ndim == 4 and tensor.shape[1] == 6 and tensor.shape[2] > 6:
                kept.append(tensor.dtype)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                made = model.train()(batch(dtype=torch.float32))
            made.float().sum().backward()
        assert all(torch.isfinite(grad).all() for grad in gradients(model).values())
    assert set(seen["training"]) == set(seen["plain"]) == {torch.bfloat16}


def test_a_loss_scaler() -> None:
    """A power of two: what it multiplies by it divides away again."""
    results = []
    for scale in (1.0, 2.0**12):
        model = branched("dbb").train()
        inner = torch.optim.SGD(model.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        for seed in SEEDS:
            inner.zero_grad()
            scaler.scale(model(batch(seed=seed)).square().mean()).backward()
            scaler.step(inner)
            scaler.update()
        results.append(opdf.fold(model).state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], **CLOSE)


@pytest.mark.parametrize("make", quick([branched, inline], {branched}))
def test_two_forwards_before_one_backward(make: Any) -> None:
    """Siamese losses do it. The sum of two backwards is what one backward of the sum must give."""
    apart, together = make("dbb(start=published)"), make("dbb(start=published)")
    for model in (apart, together):
        model.train()
    for seed in (0, 1):
        apart(batch(seed=seed)).square().mean().backward()
    sum(together(batch(seed=seed)).square().mean() for seed in (0, 1)).backward()
    wanted = gradients(apart)
    for name, value in gradients(together).items():
        torch.testing.assert_close(value, wanted[name], **CLOSE)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    """Statistics move once more in the second forward, the plain student's as the branches'."""
    runs = {}
    for again in (None, reentrant):
        for name, model in {"plain": student(), "branched": branched("repvgg")}.items():
            model.reentrant = again
            model.train()(batch().requires_grad_()).square().mean().backward()
            counters = {int(b) for n, b in model.named_buffers() if n.endswith("tracked")}
            runs[name, again] = gradients(model), counters
    for name in ("plain", "branched"):
        (wanted, once), (found, twice) = runs[name, None], runs[name, reentrant]
        assert (once, twice) == ({1}, {2})
        assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_the_border_of_a_checkpointed_branch_is_that_of_later_statistics() -> None:
    """`dbb` continues its inner norm by running statistics, which a second forward has moved."""
    runs = []
    for again in (None, False):
        model = branched("dbb(start=published)")
        model.reentrant = again
        model.train()(batch()).square().mean().backward()
        runs.append(gradients(model))
    largest = max(value.abs().max() for value in runs[0].values())
    error = max((runs[1][name] - value).abs().max() for name, value in runs[0].items())
    assert 0 < error < 0.05 * largest


@pytest.mark.parametrize(
    ("form", "make"),
    [
        ("repvgg", branched),
        pytest.param("repvgg", inline, marks=pytest.mark.slow),
        pytest.param("dbb", inline, marks=pytest.mark.slow),
        pytest.param("dbb", branched, marks=pytest.mark.slow),
    ],
)
def test_torch_compile(form: str, make: Any) -> None:
    """Without a break in the graph, and with the same bits."""
    plain, compiled = make(form), make(form)
    wrapped: Any = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for model in (plain, wrapped):
        steps(model, [batch(seed=seed) for seed in SEEDS])
    wanted = opdf.fold(plain).state_dict()
    for name, value in opdf.fold(compiled).state_dict().items():
        torch.testing.assert_close(value, wanted[name], **CLOSE)
    with pytest.raises(FoldError, match="fold the module"):
        opdf.fold(wrapped)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["repvgg", "dbb"])
def test_inductor(form: str) -> None:
    plain, compiled = branched(form), branched(form)
    for model in (plain, torch.compile(compiled)):
        steps(model, [batch(seed=seed) for seed in SEEDS])
    wanted = opdf.fold(plain).state_dict()
    for name, value in opdf.fold(compiled).state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-9)


def test_an_average_of_weights() -> None:
    """The average is a module with branches as well; its statistics are counted anew."""
    model = branched("dbb")
    average = AveragedModel(model)
    for seed in SEEDS:
        steps(model, [batch(seed=seed)])
        average.update_parameters(model)
    update_bn([batch(seed=seed) for seed in SEEDS], average)
    wanted = average.eval()(batch())
    folded = opdf.fold(average.module)
    torch.testing.assert_close(folded(batch()), wanted, **CLOSE)
    assert not torch.allclose(wanted, model.eval()(batch()), atol=1e-4)
    assert folded.body[1].momentum == 0.1
    with pytest.raises(FoldError, match="fold the module inside"):
        opdf.fold(average)


def test_resume_is_bit_equal() -> None:
    def made() -> tuple[Any, torch.optim.Optimizer]:
        model = branched("dbb").train()
        return model, torch.optim.AdamW(model.parameters(), lr=0.01)

    def run(model: Any, inner: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            inner.zero_grad()
            model(batch(seed=seed)).square().mean().backward()
            inner.step()

    whole, inner = made()
    run(whole, inner, range(3))
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": inner.state_dict()}, file)
    run(whole, inner, range(3, 6))
    resumed, inner = made()
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state["model"])
    inner.load_state_dict(state["optimizer"])
    run(resumed, inner, range(3, 6))
    wanted = whole.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.state_dict().items())


def test_our_checkpoints_carry_cores_and_branches(tmp_path: Path) -> None:
    head = opdf.plan(student(), include=["head.*"], min_size=1)
    plan = opdf.Plan(head.entries, sites=plan_of("repvgg").sites)

    def made() -> opdf.Overparam:
        return opdf.Overparam(opdf.branch(student(), plan).train(), lr=0.01, plan=plan)

    def run(opt: opdf.Overparam, seeds: range) -> None:
        for seed in seeds:
            opt.zero_grad()
            opt.program.module(batch(seed=seed)).square().mean().backward()
            opt.step()

    whole = made()
    run(whole, range(3))
    opdf.save_checkpoint(tmp_path, whole, step=3)
    run(whole, range(3, 6))
    resumed = made()
    opdf.load_checkpoint(tmp_path, resumed)
    run(resumed, range(3, 6))
    wanted = opdf.fold(whole).state_dict()
    assert list(wanted) == list(student().state_dict())
    for name, value in opdf.fold(resumed).state_dict().items():
        assert torch.equal(value, wanted[name]), name


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_whole_and_apart(how: str) -> None:
    model = branched("dbb")
    steps(model, [batch(seed=seed) for seed in SEEDS])
    if how == "deepcopy":
        copied = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    wanted = opdf.fold(model).state_dict()
    for name, value in opdf.fold(copied).state_dict().items():
        assert torch.equal(value, wanted[name])
    copied.train()
    copied.body[1].eval()  # Reaches the copy's own site.
    assert not copied.body[0].norm.training and model.train().body[0].norm.training
    steps(copied, [batch()])
    assert all(torch.equal(v, wanted[n]) for n, v in opdf.fold(model).state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_dtype(dtype: torch.dtype) -> None:
    model = branched("dbb").to(dtype).train()
    model(batch(dtype=dtype)).float().sum().backward()
    folded = opdf.fold(model)
    assert {v.dtype for v in folded.state_dict().values() if v.is_floating_point()} == {dtype}
    # No optimizer stepped, and gains of 0 add nothing: folding changes no bit.
    assert torch.equal(folded.eval()(batch(dtype=dtype)), model.eval()(batch(dtype=dtype)))


def test_channels_last() -> None:
    model = branched("repvgg").to(memory_format=torch.channels_last)
    steps(model, [batch(seed=seed).to(memory_format=torch.channels_last) for seed in SEEDS])
    kernels = [p for p in opdf.fold(model).parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_hooks_and_zero_grad() -> None:
    """A hook at a site sees what the norm gave; at the norm's place it sees the same."""
    model, seen = branched("repvgg").train(), []
    for place in (0, 1):
        model.body[place].register_forward_hook(lambda _m, _x, made: seen.append(made))
    model(batch()).sum().backward()
    assert len(seen) == 2 and torch.equal(*seen)
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_the_fold_halfway_leaves_the_training_as_it_was() -> None:
    """Evaluating and folding between steps changes nothing that follows."""
    plain, looked_at = branched("dbb"), branched("dbb")
    for seed in SEEDS:
        for model in (plain, looked_at):
            steps(model, [batch(seed=seed)])
        before = looked_at.eval()(batch())
        torch.testing.assert_close(opdf.fold(looked_at)(batch()), before, **CLOSE)
    wanted = plain.state_dict()
    assert all(torch.equal(value, wanted[n]) for n, value in looked_at.state_dict().items())
