"""B + F_1 .. F_L: its start against numpy's SVD, steps by hand, and starts along a gradient."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import random
from torch import nn

import opdf_compile as opdf
from opdf_compile.errors import FoldError, InputError, PlanError, WeightsChanged
from opdf_compile.io.saved.core_folding import fold_state
from opdf_compile.parametrizations.delta import Delta, DeltaSpec
from opdf_compile.parametrizations.matrix_spec import WeightForm

DELTA = Delta()


def rms(weight: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.linalg.svd(weight, compute_uv=False) ** 2)))


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("rank", [1, 4, 18])
def test_the_start_is_small_and_along_the_leading_vectors(depth: int, rank: int) -> None:
    weight = random(24, 18)
    spec = DeltaSpec((24, 18), "float64", rank=rank, depth=depth)
    base, *chain = (t.numpy() for t in DELTA.decompose(weight, spec))
    u, _s, vt = np.linalg.svd(weight.numpy(), full_matrices=False)
    size = rms(weight.numpy()) * 1e-3 ** max(depth - 2, 1)
    wanted = size * u[:, :rank] @ vt[:rank]
    product = np.linalg.multi_dot(chain)
    np.testing.assert_allclose(product, wanted, rtol=1e-9, atol=1e-12 * size)
    np.testing.assert_allclose(base, weight.numpy() - wanted, rtol=0, atol=1e-14)
    np.testing.assert_allclose(chain[0].T @ chain[0], np.eye(rank), atol=1e-12)
    for middle in chain[1:-2]:
        np.testing.assert_allclose(middle, 1e-3 * np.eye(rank))
    assert [c.shape for c in chain] == [(24, rank), *[(rank, rank)] * (depth - 2), (rank, 18)]


HARD = {
    "zero": lambda w: w * 0,
    "constant": lambda w: w * 0 + 0.3,
    "identity": lambda w: torch.eye(*w.shape),
    "rank 1": lambda w: w[:, :1] @ w[:1],
    "tiny": lambda w: w * 1e-30,
    "huge": lambda w: w * 1e30,
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("along", [None, "zeros", "another"])
def test_no_start_loses_anything(case: str, depth: int, along: str | None) -> None:
    weight = HARD[case](random(24, 18).float())
    spec = DeltaSpec((24, 18), depth=depth, rank=6, base="frozen")
    gradient = {"zeros": weight * 0, "another": random(24, 18, seed=1).float() * 1e20}
    made = (
        DELTA.decompose(weight, spec)
        if along is None
        else DELTA.seeded(weight, gradient[along], spec)
    )
    exact = DELTA.compose([t.double() for t in made], spec.with_dtype("float64"))
    for composed in (exact, DELTA.compose(made, spec).double()):
        assert (composed - weight.double()).norm() <= 1e-6 * weight.double().norm()
    leaves = [t.clone().requires_grad_(place > 0) for place, t in enumerate(made)]
    DELTA.compose(leaves, spec).backward(random(24, 18, seed=2).float())
    grads = [leaf.grad for leaf in leaves[1:]]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)
    assert any(bool(g.any()) for g in grads if g is not None), "the chain alone can move it"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    weight = random(24, 18).to(dtype)
    spec = DeltaSpec((24, 18), str(dtype).removeprefix("torch."))
    tensors = DELTA.decompose(weight, spec)
    assert {t.dtype for t in tensors} == {torch.float32}
    assert torch.equal(DELTA.compose(tensors, spec), weight)


def layer() -> nn.Linear:
    model = nn.Linear(18, 24, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(random(24, 18))
    return model


@pytest.mark.parametrize("base", ["trained", "frozen"])
def test_steps_by_hand(base: str) -> None:
    """SGD of B, U, C and V; the inline form takes the same steps."""
    model, x = layer(), random(40, 18, seed=3)
    traced = opdf.trace(model, (x,))
    plan = opdf.plan(traced, parametrization=f"delta(base={base}, rank=5, size=0.1)")
    inline = opdf.expand(traced, plan)
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.002)
    other = torch.optim.SGD(inline.parameters(), lr=0.002)
    b, u, c, v = (t.detach().clone() for t in opt.program.cores("weight"))
    start = b.clone()
    for _ in range(4):
        for network, stepper in ((model, opt), (inline, other)):
            stepper.zero_grad()
            network(x).square().sum().backward()
            stepper.step()
        weight = b + u @ c @ v
        g = 2 * (x @ weight.mT).mT @ x
        slopes = (g, g @ (c @ v).mT, u.mT @ g @ v.mT, (u @ c).mT @ g)
        b = b - 0.002 * slopes[0] * (base == "trained")
        u, c, v = u - 0.002 * slopes[1], c - 0.002 * slopes[2], v - 0.002 * slopes[3]
    weight = b + u @ c @ v
    assert (b - start).abs().max() > 1e-3 or base == "frozen"
    torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inline.weight("weight").detach(), weight, rtol=1e-9, atol=1e-9)
    moved = torch.linalg.matrix_rank(model.weight.detach() - start, tol=1e-9)
    assert int(moved) == (5 if base == "frozen" else 18)


def test_a_seeded_start_moves_first_along_the_gradient() -> None:
    """The leading directions of the first gradient, in place of those of the weight."""
    model, x = layer(), random(7, 18, seed=3)
    plan = opdf.plan(model, parametrization="delta(base=frozen, rank=3)")
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=1e-3)
    before = model.weight.detach().clone()
    model(x).square().sum().backward()
    gradient = model.weight.grad.clone()
    assert opt.seed() == ("weight",)
    assert torch.equal(model.weight, before) and torch.equal(model.weight.grad, gradient)
    base, u, c, v = (t.detach().numpy() for t in opt.program.cores("weight"))
    left, _s, right = np.linalg.svd(gradient.numpy(), full_matrices=False)
    np.testing.assert_allclose(np.abs(np.diag(left[:, :3].T @ u)), 1, rtol=1e-9)
    np.testing.assert_allclose(u @ v, left[:, :3] @ right[:3], atol=1e-9)
    np.testing.assert_allclose(base + u @ c @ v, before.numpy(), rtol=0, atol=1e-14)
    opt.step()
    # dW = -lr U U^T G V V^T + terms of the order of the small factors.
    projected = left[:, :3] @ left[:, :3].T @ gradient.numpy() @ right[:3].T @ right[:3]
    step = (model.weight.detach() - before).numpy()
    np.testing.assert_allclose(step, -1e-3 * projected, atol=1e-4 * np.abs(projected).max())
    opt.step()


def test_a_program_is_seeded_where_there_are_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(12, 12) for _ in range(3)), nn.Linear(12, 12)).double()
    plan = opdf.plan(model, parametrization="delta(rank=2)")
    program = opdf.hoist(model, plan, batched=True)
    assert len(program.units) == 1
    before = {key: [t.clone() for t in program.cores(key)] for key in ("0.weight", "3.weight")}
    model[1](model[0](random(5, 12))).square().sum().backward()
    assert program.seed() == ("0.weight", "1.weight")
    others = [
        torch.equal(a, b)
        for a, b in zip(program.cores("3.weight"), before["3.weight"], strict=True)
    ]
    assert all(others)
    assert not torch.equal(program.cores("0.weight")[1], before["0.weight"][1])
    weights = copy.deepcopy(model.state_dict())
    program.refresh()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=1e-14)


def test_what_cannot_start_along_a_gradient_stays() -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
    opt = opdf.Overparam(model, torch.optim.SGD, plan=opdf.plan(model), lr=0.1)
    model(torch.randn(3, 12)).sum().backward()
    before = [t.clone() for t in opt.program.cores("0.weight")]
    assert opt.seed() == ()
    assert all(map(torch.equal, opt.program.cores("0.weight"), before))


def test_seeding_later_drops_the_state_and_keeps_the_weight() -> None:
    model, x = layer(), random(7, 18, seed=3)
    plan = opdf.plan(model, parametrization="delta(rank=3)")
    opt = opdf.Overparam(model, torch.optim.Adam, plan=plan, lr=1e-2)
    for _ in range(3):
        opt.zero_grad()
        model(x).square().sum().backward()
        opt.step()
    (unit,) = opt.program.units
    assert all(opt.inner.state.get(core) for core in unit.storage)
    reached = model.weight.detach().clone()
    assert opt.seed() == ("weight",)
    assert not any(opt.inner.state.get(core) for core in unit.storage)
    torch.testing.assert_close(opt.fold().weight, reached, rtol=0, atol=1e-14)  # type: ignore[arg-type]
    opt.step()


def test_gradients_and_weights_that_are_no_start_are_refused() -> None:
    model = layer()
    opt = opdf.Overparam(
        model, torch.optim.SGD, plan=opdf.plan(model, parametrization="delta"), lr=0.1
    )
    before = [t.clone() for t in opt.program.cores("weight")]
    model.weight.grad = torch.full_like(model.weight, float("inf"))
    with pytest.raises(
        InputError, match="'weight' cannot start along its gradient: of its gradient: 432 of 432 en"
    ):
        opt.seed()
    assert all(map(torch.equal, opt.program.cores("weight"), before))
    with torch.no_grad():
        model.weight.mul_(2)
    model.weight.grad = torch.ones_like(model.weight)
    with pytest.raises(WeightsChanged):
        opt.seed()


def test_the_usual_size_and_what_it_counts() -> None:
    model = nn.Sequential(nn.Linear(18, 24), nn.Conv2d(2, 4, 3))
    plan = opdf.plan(model, parametrization="delta(base=frozen)")
    assert [entry.modes for entry in plan.entries] == [
        "frozen base + rank 8, depth 3",
        "frozen base + rank 4, depth 3",
    ]
    linear, conv = (entry.cost for entry in plan.entries)
    assert (linear.parameters, linear.untrained) == (8 * (24 + 18) + 64, 24 * 18)
    assert (conv.parameters, conv.untrained) == (4 * (4 + 18) + 16, 4 * 18)
    assert opdf.plan(model, parametrization="delta(base=frozen, rank=2)").scale < 0.6
    trained = opdf.plan(model, parametrization="delta", scale=1.5)
    assert trained.scale == pytest.approx(1.5, abs=0.1)
    with pytest.raises(PlanError, match="delta has a base and 2 factors or more, found cores=2"):
        DELTA.propose(WeightForm((24, 18)), cores=2)


def test_shapes_tell_the_weight_and_square_ones_do_not() -> None:
    spec = DeltaSpec((24, 18), rank=5, depth=4, base="frozen")
    found = DELTA.infer(DELTA.shapes(spec), WeightForm((24, 18)))
    assert found == replace(spec, base="trained")
    with pytest.raises(FoldError, match="4 matrices of 16 x 16 may be a residual"):
        DELTA.infer([(16, 16)] * 4, WeightForm((16, 16)))
    with pytest.raises(FoldError, match="the first is wanted to be 24 x 18, and the second"):
        DELTA.infer([(24, 5), (5, 5), (5, 18)], WeightForm((24, 18)))


@pytest.mark.parametrize("name", ["delta(base=frozen)", "spectral", "spectral(residual=frozen)"])
def test_a_chain_beside_a_matrix_folds_alike_whatever_it_was_called(name: str) -> None:
    """Without a plan nothing tells delta from spectral, and nothing needs to."""
    model, x = layer(), random(7, 18)
    traced = opdf.trace(model, (x,))
    inline = opdf.expand(traced, opdf.plan(traced, parametrization=name))
    with torch.no_grad():
        for parameter in inline.parameters():
            parameter.add_(0.1)
    folded = opdf.fold(inline)
    assert isinstance(folded, nn.Module)
    state = fold_state({k: t.detach() for k, t in inline.state_dict().items()}, None, folded)
    torch.testing.assert_close(state["weight"], folded.weight.detach(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["delta", "spectral"])
def test_a_rank_is_the_full_one_of_a_smaller_matrix(name: str) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 10))
    plan = opdf.plan(model, parametrization=f"{name}(rank=16)")
    assert [vars(entry.spec)["rank"] for entry in plan.entries] == [16, 10]
    with pytest.raises(PlanError, match="rank is 0"):
        opdf.plan(model, parametrization=f"{name}(rank=0)")


@pytest.mark.parametrize(("name", "beside"), [("delta", "a base"), ("spectral", "a residual")])
def test_two_cores_are_no_chain_beside_a_matrix(name: str, beside: str) -> None:
    with pytest.raises(
        PlanError, match=f"{name} has {beside} and 2 factors or more, found cores=2"
    ):
        opdf.plan(nn.Linear(32, 32), parametrization=name, cores=2)
