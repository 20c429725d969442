"""fold: the student comes back whole, and is what the Expanded was."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quick import quick
from torch import Tensor, nn
from torch.export import ExportedProgram

import opdf_compile as opdf
from opdf_compile.errors import FoldError
from opdf_compile.training.inline.expanded import Expanded


def grow(model: nn.Module, *args: Any, **options: Any) -> Expanded:
    traced = opdf.trace(model, args)
    return opdf.expand(traced, opdf.plan(traced, **({"min_size": 1, "cores": 3} | options)))


def train(module: nn.Module, steps: int) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    module.train()
    for _ in range(steps):
        ids = torch.randint(0, 40, (8, 5))
        optimizer.zero_grad()
        F.cross_entropy(module(ids).flatten(0, 1), ids.flatten()).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "include",
    [
        pytest.param([], id="tie left alone", marks=pytest.mark.slow),
        pytest.param(["*"], id="tie expanded"),
    ],
)
def test_fifty_steps_then_fold(student: nn.Module, ids: Tensor, include: list[str]) -> None:
    """Acceptance point 7."""
    untouched = copy.deepcopy(student.state_dict())
    expanded = grow(student, ids, include=include)
    train(expanded, 50)
    folded = opdf.fold(expanded)
    expanded.eval()
    reference = expanded(ids)
    result = copy.deepcopy(folded).eval()(ids)
    assert (result - reference).abs().max() <= 1e-5 * reference.abs().max()
    # The same class, keys, shapes, dtypes, ties, flags and buffers.
    assert type(folded) is type(student)
    assert list(folded.state_dict()) == list(student.state_dict())
    for name, tensor in student.state_dict().items():
        assert folded.state_dict()[name].shape == tensor.shape
        assert folded.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(tensor, untouched[name]), f"the student that was traced moved: {name}"
    assert folded.head.weight is folded.table.weight
    ours, theirs = dict(folded.named_parameters()), dict(student.named_parameters())
    assert {n: p.requires_grad for n, p in ours.items()} == {
        n: p.requires_grad for n, p in theirs.items()
    }
    flags = {name: module.training for name, module in student.named_modules()}
    assert {name: module.training for name, module in folded.named_modules()} == flags
    assert not flags["frozen_norm"]
    # What training moved, and what it must not move.
    assert folded.norm.num_batches_tracked == 50
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(folded.norm, name), expanded.tree.get_buffer(f"norm.{name}"))
        kept = getattr(folded.frozen_norm, name)
        assert torch.equal(kept, untouched[f"frozen_norm.{name}"])
    for name in ("frozen.weight", "frozen.bias"):
        assert torch.equal(folded.state_dict()[name], untouched[name])
    for name in ("mix.weight", "shared.weight", "table.weight"):
        assert not torch.equal(folded.state_dict()[name], untouched[name])
    assert folded.scale == 0.5


def test_the_comparison_can_fail(graphs: opdf.Traced, ids: Tensor) -> None:
    expanded = opdf.expand(graphs, opdf.plan(graphs, min_size=1, cores=3)).eval()
    folded = opdf.fold(expanded).eval()
    with torch.no_grad():
        folded.shared.weight[0] *= 1.01
    reference = expanded(ids)
    assert (folded(ids) - reference).abs().max() > 1e-5 * reference.abs().max()


def test_fold_leaves_the_expanded_and_shares_nothing_with_it(
    graphs: opdf.Traced, ids: Tensor
) -> None:
    expanded = opdf.expand(graphs, opdf.plan(graphs, min_size=1, cores=3)).eval()
    before = copy.deepcopy(expanded.state_dict())
    wanted = expanded(ids)
    folded = opdf.fold(expanded)
    with torch.no_grad():
        for tensor in folded.state_dict().values():
            tensor.zero_()
    assert torch.equal(expanded(ids), wanted)
    for name, tensor in expanded.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert opdf.fold(expanded) is not folded


def test_fold_is_exact_to_one_rounding() -> None:
    expanded = grow(nn.Linear(24, 36), torch.randn(2, 24), cores=3)
    with torch.no_grad():
        for core in expanded.cores("weight"):
            core.copy_(torch.randn_like(core))
    cores = [core.detach().double().numpy() for core in expanded.cores("weight")]
    oracle = np.einsum("aijb,bklc,cmnd->ikmjln", *cores).reshape(36, 24)
    weight = opdf.fold(expanded).weight.detach().double().numpy()
    # Half a unit in the last place of float32, and nothing of the float32 products' error.
    assert np.all(np.abs(weight - oracle) <= np.abs(oracle) * 2.0**-24 * (1 + 1e-6) + 1e-30)


@pytest.mark.parametrize(
    "dtype",
    quick(
        [torch.float16, torch.bfloat16, torch.float32, torch.float64],
        {torch.bfloat16, torch.float32},
    ),
)
def test_an_untrained_expansion_folds_to_the_same_weights(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 8)).to(dtype)
    folded = opdf.fold(grow(model, torch.randn(2, 16, dtype=dtype)))
    for name, tensor in model.state_dict().items():
        ours = folded.state_dict()[name]
        assert ours.dtype is dtype
        if dtype in (torch.float16, torch.bfloat16) or name.endswith("bias"):
            assert torch.equal(ours, tensor), name
        assert (ours.double() - tensor.double()).norm() <= 1e-6 * tensor.double().norm()


@pytest.mark.parametrize("move", ["half", "double"])
def test_fold_keeps_the_students_dtype_after_a_move(move: str) -> None:
    model = nn.Linear(16, 16)
    expanded = getattr(grow(model, torch.randn(2, 16)), move)()
    folded = opdf.fold(expanded)
    assert folded.weight.dtype is torch.float32
    torch.testing.assert_close(folded.weight, model.weight, rtol=1e-6, atol=1e-7)


def test_a_program_comes_back_as_a_program() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()
    program = torch.export.export(model, (torch.randn(3, 8),), strict=False)
    traced = opdf.trace(program)
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3))
    with torch.no_grad():
        expanded.tree.get_parameter("0.bias").add_(1.0)
    folded = opdf.fold(expanded)
    assert isinstance(folded, ExportedProgram)
    assert list(folded.state_dict) == list(program.state_dict)
    torch.testing.assert_close(folded.state_dict["0.weight"], model[0].weight)
    x = torch.randn(3, 8)
    torch.testing.assert_close(folded.module()(x), model[1](model[0](x) + 1))
    assert torch.equal(program.state_dict["0.bias"], model[0].bias), "the program is left alone"


def test_a_diverged_expansion_is_refused() -> None:
    expanded = grow(nn.Linear(8, 8), torch.randn(2, 8))
    expanded.cores("weight")[1].data[0] = float("inf")
    with pytest.raises(
        FoldError, match="cores of 'weight' give NaN or infinity, .* lower the learn"
    ):
        opdf.fold(expanded)


def test_a_weight_too_large_for_its_dtype_is_refused() -> None:
    model = nn.Linear(8, 8).half()
    expanded = grow(model, torch.randn(2, 8).half())
    expanded.cores("weight")[0].data.mul_(1e6)
    with pytest.raises(FoldError, match="give NaN or infinity"):
        opdf.fold(expanded)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (nn.Linear(8, 8), "a Linear"),
        ("expanded.pt2", "a str"),
        (None, "a NoneType"),
    ],
)
def test_what_is_no_expanded(value: Any, found: str) -> None:
    with pytest.raises(FoldError, match=f"fold got {found}, wanted the module that opdf.expand"):
        opdf.fold(value)


def test_a_compiled_expanded_is_refused_with_the_remedy() -> None:
    compiled = torch.compile(grow(nn.Linear(8, 8), torch.randn(2, 8)), backend="eager")
    with pytest.raises(
        FoldError, match="torch.compile wraps it: fold the module that was compiled"
    ):
        opdf.fold(compiled)


def test_the_expansion_of_an_expansion_has_no_weight_left() -> None:
    expanded = grow(nn.Linear(8, 8), torch.randn(2, 8))
    report = opdf.match(opdf.trace(expanded, (torch.randn(2, 8),)))
    assert not report.matches
    assert {r.key for r in report.refusals} == {f"weight_cores.{i}" for i in range(3)}


def test_fold_reads_no_planned_weight_of_the_skeleton() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    expanded = opdf.expand(
        traced := opdf.trace(model, (torch.randn(2, 16),)), opdf.plan(traced, cores=3)
    )
    skeleton = expanded.source
    assert isinstance(skeleton, nn.Sequential) and skeleton[1].weight is skeleton[0].weight
    assert torch.equal(skeleton[0].bias, model[0].bias)
    skeleton[0].weight.data.fill_(float("nan"))
    folded = opdf.fold(expanded)
    assert folded[1].weight is folded[0].weight
    assert (folded[0].weight - model[0].weight).abs().max() < 1e-6
