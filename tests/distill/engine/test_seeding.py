"""Where a parametrization can begin along the first gradient, the first step lets it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from opdf_compile.distill.engine import Machine, Setup, Teaching, TrainingStep, set_up
from opdf_compile.distill.recipe import Job
from opdf_compile.training import Overparam

Make = Callable[..., Job]


def built(make: Make, parametrization: str) -> tuple[Setup, TrainingStep, Overparam]:
    """Steps of a length that moves nothing beyond rounding."""
    job = make(
        student="student",
        plan=f'parametrization = "{parametrization}"',
        optimizer="SGD",
        rate="1e-14",
        options="",
        training='steps = 3\\nprecision = "fp64"',
    )
    machine = Machine(torch.device("cpu"), "fp64")
    student = job.make_student(0).double()
    setup = set_up(job, machine, student, job.plan(student), seed=0)
    assert isinstance(setup.optimizer, Overparam)
    step = TrainingStep(setup, Teaching(job, machine.teacher(job.teacher), machine))
    return setup, step, setup.optimizer


def gradients(setup: Setup, optimizer: Overparam) -> dict[str, Tensor]:
    """Filled by a backward, before the step clears them."""
    found: dict[str, Tensor] = {}
    for name in (entry.key for entry in optimizer.plan.entries):
        weight = setup.student.get_parameter(name)
        weight.register_post_accumulate_grad_hook(
            lambda w, name=name: found.update({name: w.grad.clone()})  # type: ignore[misc]
        )
    return found


def test_the_first_step_starts_delta_along_its_gradient(make: Make) -> None:
    setup, step, optimizer = built(make, "delta(rank=2)")
    found = gradients(setup, optimizer)
    assert len(optimizer.plan.entries) > 1
    before = {k: p.detach().clone() for k, p in setup.student.named_parameters()}
    step(0)
    first = {key: [t.clone() for t in optimizer.program.cores(key)] for key in found}
    for key, gradient in found.items():
        left, _s, right = np.linalg.svd(gradient.numpy(), full_matrices=False)
        base, outer, *_small, inner = (t.detach().numpy() for t in first[key])
        np.testing.assert_allclose(outer @ inner, left[:, :2] @ right[:2], atol=1e-8)
        np.testing.assert_allclose(setup.student.get_parameter(key).detach(), before[key], 0, 1e-12)
    step(1)
    for key, cores in first.items():
        for now, then in zip(optimizer.program.cores(key), cores, strict=True):
            torch.testing.assert_close(now, then, rtol=0, atol=1e-12)


@pytest.mark.parametrize("parametrization", ["delta(rank=2)", "svd"])
def test_nothing_starts_anew_otherwise(make: Make, parametrization: str) -> None:
    """A gradient that overflowed has no directions; a form without `seeds` keeps its start."""
    setup, step, optimizer = built(make, parametrization)
    entries = optimizer.plan.entries
    before = {e.key: [t.clone() for t in optimizer.program.cores(e.key)] for e in entries}
    if parametrization != "svd":
        weight = setup.student.get_parameter(entries[-1].key)
        weight.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    optimizer.step = lambda closure=None: None  # type: ignore[method-assign, assignment]
    step(0)
    for key, cores in before.items():
        assert all(map(torch.equal, optimizer.program.cores(key), cores))
