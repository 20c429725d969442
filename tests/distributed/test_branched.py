"""A student with branches under DDP: reduced as any module is, and folded on each rank alike."""

from __future__ import annotations

from typing import Any

import pytest
import students
import torch
from sites import Stack, batch, stirred
from torch import nn

import opdf_compile as opdf


@pytest.mark.parametrize("form", ["repvgg", "dbb"])
def test_the_ranks_fold_to_the_same_student(two: Any, form: str) -> None:
    runs = two.run("branched_tasks", "trained", form=form)
    start = stirred(Stack()).double().state_dict()
    for run in runs:
        assert list(run["state"]) == list(start)
        assert run["error"] < 1e-12
    assert students.same_bits(run["state"] for run in runs)
    moved = runs[0]["state"]["body.0.weight"] - start["body.0.weight"]
    assert moved.abs().max() > 1e-5


def test_gradients_are_the_mean_over_ranks(two: Any) -> None:
    for run in two.run("branched_tasks", "of_frozen_norms", form="dbb"):
        assert run["found"].keys() == run["wanted"].keys()
        for name, value in run["found"].items():
            torch.testing.assert_close(value, run["wanted"][name], rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", ["repvgg", "dbb"])
def test_synchronised_norms_fold_to_those_of_the_student(form: str) -> None:
    """Their forward needs a GPU in training; the conversion, eval mode and the fold need none."""
    torch.manual_seed(0)
    plain = stirred(Stack()).double()
    plan = opdf.plan(opdf.trace(plain, (batch(),)), parametrization=form)
    training: Any = nn.SyncBatchNorm.convert_sync_batchnorm(opdf.branch(plain, plan))
    kinds = {type(m) for m in training.modules() if "Norm" in type(m).__name__}
    assert kinds == {nn.SyncBatchNorm}
    with torch.no_grad():
        for module in training.modules():
            if isinstance(module, nn.SyncBatchNorm):
                for tensor in (module.weight, module.bias, module.running_mean):
                    assert tensor is not None
                    tensor.add_(0.1)
                module.num_batches_tracked += 7  # type: ignore[operator]
    wanted = training.eval()(batch())
    folded = opdf.fold(training)
    assert [type(m) for m in folded.modules()] == [type(m) for m in plain.modules()]
    torch.testing.assert_close(folded(batch()), wanted, rtol=0, atol=1e-13)
    assert int(folded.body[1].num_batches_tracked) == 7
    training.train()
    training.body[1].eval()  # Frozen by its name, which is that of no SyncBatchNorm any more.
    assert not training.body[0].norm.training


def test_branches_of_a_student_with_synchronised_norms() -> None:
    torch.manual_seed(0)
    plain = stirred(Stack()).double()
    plan = opdf.plan(opdf.trace(plain, (batch(),)), parametrization="repvgg")
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(plain)
    training = opdf.branch(converted, plan)
    assert type(training.body[0].branches.point.norm) is nn.SyncBatchNorm
    assert type(opdf.fold(training).body[1]) is nn.SyncBatchNorm
