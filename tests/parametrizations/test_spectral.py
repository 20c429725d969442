"""R + F_1 .. F_L: against numpy's SVD, one step by hand, and what is left to learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import opdf_compile as opdf
from opdf_compile.errors import FoldError, InputError, PlanError
from opdf_compile.parametrizations.matrix_spec import WeightForm
from opdf_compile.parametrizations.spectral import Spectral, SpectralSpec

SPECTRAL = Spectral()


def weight(rows: int = 24, cols: int = 18) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("rank", [1, 4, 18])
def test_the_chain_is_the_leading_part_of_the_svd(depth: int, rank: int) -> None:
    spec = SpectralSpec((24, 18), "float64", rank=rank, depth=depth)
    residual, *chain = (t.numpy() for t in SPECTRAL.decompose(weight(), spec))
    u, s, vt = np.linalg.svd(weight().numpy(), full_matrices=False)
    leading = (u[:, :rank] * s[:rank]) @ vt[:rank]
    product = np.linalg.multi_dot(chain)
    np.testing.assert_allclose(product, leading, atol=1e-12)
    np.testing.assert_allclose(residual, weight().numpy() - leading, atol=1e-12)
    # Balanced: every factor has the same singular values.
    for factor in chain:
        values = np.linalg.svd(factor, compute_uv=False)
        np.testing.assert_allclose(values, s[:rank] ** (1 / depth), rtol=1e-10)


def test_one_step_of_sgd_by_hand() -> None:
    model = torch.nn.Linear(18, 24, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weight())
    plan = opdf.plan(model, parametrization="spectral")
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.01)
    r, u, m, v = (t.detach().clone() for t in opt.program.cores("weight"))
    g = torch.cos(torch.arange(24.0 * 18).double()).reshape(24, 18)
    model.weight.grad = g.clone()
    opt.step()

    def stepped(outer: float) -> torch.Tensor:
        left, right = u - outer * g @ (m @ v).mT, v - outer * (u @ m).mT @ g
        return r - 0.01 * g + left @ (m - 0.01 * u.mT @ g @ v.mT) @ right

    torch.testing.assert_close(model.weight.detach(), stepped(0.05), rtol=1e-12, atol=1e-12)
    assert (model.weight - stepped(0.01)).abs().max() > 1e-2, "the control: one rate for all"


def test_every_direction_can_be_learned() -> None:
    """A chain of rank r alone could not leave rank r."""
    model = torch.nn.Linear(16, 16, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    opt = opdf.Overparam(
        model, torch.optim.Adam, plan=opdf.plan(model, parametrization="spectral"), lr=0.02
    )
    target = torch.eye(16).double()
    for _ in range(200):
        opt.zero_grad()
        (model.weight - target).square().sum().backward()
        opt.step()
    assert (model.weight - target).abs().max() < 0.05
    assert torch.linalg.matrix_rank(model.weight.detach(), tol=0.5) == 16


def test_the_middle_factors_are_cheaper_than_the_mpos() -> None:
    student = torch.nn.Linear(768, 768)
    ours = opdf.plan(student, parametrization="spectral", cores=6)
    theirs = opdf.plan(student, cores=5)
    assert ours.cost.step_flops < theirs.cost.step_flops / 5
    assert ours.cost.parameters < theirs.cost.parameters


def of_rank(rank: int) -> torch.Tensor:
    u, s, vt = np.linalg.svd(weight().numpy(), full_matrices=False)
    return torch.from_numpy((u[:, :rank] * s[:rank]) @ vt[:rank])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("rank", [1, 5, 18])
def test_a_chain_alone_holds_a_weight_of_its_rank(rank: int, dtype: str) -> None:
    made = of_rank(rank).to(getattr(torch, dtype))
    spec = SpectralSpec((24, 18), dtype, rank=rank if dtype != "bfloat16" else 18, residual="none")
    tensors = SPECTRAL.decompose(made, spec)
    assert [tuple(t.shape) for t in tensors] == [
        (24, spec.rank),
        (spec.rank, spec.rank),
        (spec.rank, 18),
    ]
    product = np.linalg.multi_dot([t.double().numpy() for t in tensors])
    lost = np.linalg.norm(product - made.double().numpy()) / np.linalg.norm(made.double().numpy())
    assert lost <= (1e-14 if dtype == "float64" else 2e-7)
    assert (
        torch.equal(SPECTRAL.compose(tensors, spec).double(), made.double()) or dtype != "bfloat16"
    )


@pytest.mark.parametrize("case", ["zero", "tiny", "huge", "constant"])
def test_a_chain_alone_holds_these_and_can_leave_zero(case: str) -> None:
    factor = {"zero": 0.0, "tiny": 1e-30, "huge": 1e30, "constant": 0.3}[case]
    made = (weight() * 0 + 1 if case == "constant" else weight()).float() * factor
    spec = SpectralSpec((24, 18), rank=18, residual="none")
    tensors = [t.requires_grad_() for t in SPECTRAL.decompose(made, spec)]
    composed = SPECTRAL.compose(tensors, spec)
    assert (composed.double() - made.double()).norm() <= 1e-6 * made.double().norm()
    composed.sum().backward()
    assert any(bool(t.grad.any()) for t in tensors if t.grad is not None)


def test_a_chain_alone_that_would_lose_something_is_refused() -> None:
    spec = SpectralSpec((24, 18), "float64", rank=5, residual="none")
    values = np.linalg.svd(weight().numpy(), compute_uv=False)
    lost = np.linalg.norm(values[5:]) / np.linalg.norm(values)
    sentence = f"3 factors of rank 5 without a residual would lose {lost:.2g} of its norm, wanted"
    with pytest.raises(InputError, match=sentence):
        SPECTRAL.decompose(weight(), spec)
    sixth = (of_rank(6) - of_rank(5)) / values[5]
    barely = of_rank(5) + 3e-6 * np.linalg.norm(values[:5]) * sixth
    with pytest.raises(InputError, match="would lose 3e-06"):
        SPECTRAL.decompose(barely, spec)
    assert len(SPECTRAL.decompose(of_rank(5), spec)) == 3
    model = torch.nn.Linear(18, 24)
    plan = opdf.plan(model, parametrization="spectral(residual=none, rank=5)")
    with pytest.raises(InputError, match="'weight' cannot be factorised: 4 factors of rank 5"):
        opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.1)


def test_a_frozen_residual_leaves_the_chain_to_move() -> None:
    """One step by hand: the residual is that of the start."""
    model = torch.nn.Linear(18, 24, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weight())
    plan = opdf.plan(model, parametrization="spectral(residual=frozen)")
    assert plan.entries[0].modes == "frozen + rank 4, depth 3"
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.01)
    r, u, m, v = (t.detach().clone() for t in opt.program.cores("weight"))
    g = torch.cos(torch.arange(24.0 * 18).double()).reshape(24, 18)
    model.weight.grad = g.clone()
    opt.step()
    left, right = u - 0.05 * g @ (m @ v).mT, v - 0.05 * (u @ m).mT @ g
    wanted = r + left @ (m - 0.01 * u.mT @ g @ v.mT) @ right
    torch.testing.assert_close(model.weight.detach(), wanted, rtol=1e-12, atol=1e-12)
    assert (model.weight - (wanted - 0.01 * g)).abs().max() > 1e-3, "the control"
    # What moved has rank 4 on either side.
    assert torch.linalg.matrix_rank(model.weight.detach() - r, tol=1e-9) == 4


def test_what_is_frozen_is_counted_apart() -> None:
    model = torch.nn.Linear(18, 24, bias=False)
    trained, frozen, alone = (
        opdf.plan(model, parametrization=f"spectral(residual={residual})").cost
        for residual in ("trained", "frozen", "none")
    )
    chain = 24 * 4 + 4 * 4 + 4 * 18
    assert (trained.parameters, trained.untrained) == (24 * 18 + chain, 0)
    assert (frozen.parameters, frozen.untrained) == (chain, 24 * 18)
    assert frozen.added == chain - 24 * 18
    assert alone.parameters == 24 * 18 + 2 * 18 * 18 + 18 * 18
    plan = opdf.plan(model, parametrization="spectral(residual=frozen)")
    # Value, gradient and two moments of the chain; the residual's and the weight's values.
    held = 4 * (4 * chain + 24 * 18 + 24 * 18)
    assert plan.peak_bytes == held + 4 * frozen.largest_intermediate
    opt = opdf.Overparam(model, torch.optim.SGD, plan=plan, lr=0.1)
    assert opt.summary().trained == opt.summary().held == chain
    assert "432 entries of cores are kept and not trained" in str(opt.summary())
    assert opdf.Plan.from_json(plan.to_json()).cost == plan.cost


def test_trained_and_frozen_ones_of_one_size_are_no_batch() -> None:
    """Their graphs are the same; a stack is stepped or is not."""
    model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(4)))
    plan = opdf.plan(model, parametrization="spectral")
    entries = [
        replace(entry, spec=replace(entry.spec, residual="frozen")) if place % 2 else entry
        for place, entry in enumerate(plan.entries)
    ]
    mixed = replace(plan, entries=tuple(entries))
    opt = opdf.Overparam(model, torch.optim.SGD, plan=mixed, lr=0.1, batched=True)
    assert [unit.keys for unit in opt.program.units] == [
        ("0.weight", "2.weight"),
        ("1.weight", "3.weight"),
    ]
    before = {key: opt.program.cores(key)[0].clone() for key in ("0.weight", "1.weight")}
    model(torch.randn(5, 16)).square().mean().backward()
    opt.step()
    still = [torch.equal(opt.program.cores(key)[0], value) for key, value in before.items()]
    assert still == [False, True]


def test_a_batch_that_is_taken_apart_stays_frozen() -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(2)))
    plan = opdf.plan(model, parametrization="spectral(residual=frozen)")
    opt = opdf.Overparam(model, torch.optim.Adam, plan=plan, lr=0.1, batched=True)
    (unit,) = opt.program.units
    model[0](torch.randn(5, 16)).square().mean().backward()
    opt.step()
    assert unit not in opt.program.units
    assert [len(single.trained) for single in opt.program.units] == [3, 3]
    stepped = {id(p) for group in opt.inner.param_groups for p in group["params"]}
    assert all(id(single.storage[0]) not in stepped for single in opt.program.units)


def test_shapes_tell_a_chain_from_a_residual_and_a_chain() -> None:
    form = WeightForm((24, 18))
    for spec in (
        SpectralSpec((24, 18), rank=18, depth=4, residual="none"),
        SpectralSpec((24, 18), rank=3, residual="none"),
        SpectralSpec((24, 18), rank=18),
    ):
        assert SPECTRAL.infer(SPECTRAL.shapes(spec), form) == spec
    frozen = SpectralSpec((24, 18), rank=3, residual="frozen")
    assert SPECTRAL.infer(SPECTRAL.shapes(frozen), form) == replace(frozen, residual="trained")
    with pytest.raises(FoldError, match="4 matrices of 16 x 16 may be a residual and a chain of"):
        SPECTRAL.infer([(16, 16)] * 4, WeightForm((16, 16)))


def test_plans_from_before_there_was_a_choice_are_read() -> None:
    spec = SpectralSpec((24, 18), rank=3)
    written = SPECTRAL.spec_to_json(spec)
    assert "residual" not in written
    assert SPECTRAL.spec_from_json(written) == spec
    frozen = replace(spec, residual="frozen")
    assert SPECTRAL.spec_to_json(frozen)["residual"] == "frozen"
    assert SPECTRAL.spec_from_json(SPECTRAL.spec_to_json(frozen)) == frozen


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"residual": "some"}, "residual is 'some', wanted one of trained, frozen, none"),
        ({"residual": "none", "depth": 2}, "two factors without a residual are .* svd"),
    ],
)
def test_residuals_that_there_are_not(choices: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        SpectralSpec((24, 18), **{"rank": 3, **choices})


def test_a_chain_alone_has_one_size() -> None:
    with pytest.raises(PlanError, match=r"scale 1\.5 is asked for, .* leaves no choice"):
        opdf.plan(torch.nn.Linear(18, 24), parametrization="spectral(residual=none)", scale=1.5)
