"""A recipe whose student trains with branches: what ships is the student's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quick import quick
from safetensors.torch import load_file
from torch import nn

from opdf_compile.distill.engine import machine_for, set_up
from opdf_compile.distill.recipe.optimizing import parameter_groups
from opdf_compile.distill.run import run
from opdf_compile.errors import RecipeError
from opdf_compile.training import has_branches

REPVGG = 'parametrization = "repvgg(start=published)"'


def of_branches(make: Any, **values: str) -> Any:
    return make(**{"student": "blocks", "plan": REPVGG, "training": "epochs = 2", **values})


@pytest.mark.parametrize(
    "training", quick(["epochs = 2", "epochs = 2\\nema = 0.9"], {"epochs = 2\\nema = 0.9"})
)
def test_what_ships_has_the_students_own_keys(make: Any, tmp_path: Path, training: str) -> None:
    job = of_branches(make, training=training)
    result = run(job, tmp_path / "run")
    shipped, own = load_file(result.weights), job.make_student(0).state_dict()
    assert sorted(shipped) == sorted(own)
    assert not torch.equal(shipped["conv2.weight"], own["conv2.weight"])


def test_what_is_measured_is_what_ships(make: Any) -> None:
    job = of_branches(make)
    machine = machine_for(job.recipe.training)
    student = job.make_student(0)
    setup = set_up(job, machine, student, job.plan(student), seed=0)
    assert has_branches(setup.student) and not has_branches(student)
    x = torch.randn(5, 8)
    setup.student(x)  # Moves statistics.
    shipped = setup.deployed().eval()
    torch.testing.assert_close(shipped(x), setup.student.eval()(x), rtol=0, atol=1e-5)
    assert not has_branches(shipped)


def test_half_of_a_plan_by_cores(make: Any) -> None:
    """The head has cores, the convolutions have branches."""
    job = of_branches(make, plan='cores = 2\\ninclude = ["head.*"]')
    sites = of_branches(make)
    student = job.make_student(0)
    both = job.plan(student).__class__(job.plan(student).entries, sites=sites.plan(student).sites)
    machine = machine_for(job.recipe.training)
    setup = set_up(job, machine, student, both, seed=0)
    shipped = setup.deployed()
    assert type(shipped.conv1) is nn.Conv1d
    assert list(shipped.state_dict()) == list(student.state_dict())


def test_globs_of_names_mean_branches_too(make: Any) -> None:
    job = of_branches(make, options='weight_decay = 0.1\\nno_decay = ["*.bias", "bn*"]')
    student = job.make_student(0)
    setup = set_up(job, machine_for(job.recipe.training), student, job.plan(student), seed=0)
    kept, free = parameter_groups(job.recipe, setup.student)
    assert free["weight_decay"] == 0.0
    sizes = {tuple(p.shape) for p in free["params"]}
    assert sizes == {(6,), (4,)}
    assert all(p.ndim > 1 for p in kept["params"])
    count = sum(len(group["params"]) for group in (kept, free))
    assert count == len(list(setup.student.parameters()))


def test_alignment_needs_cores(make: Any) -> None:
    job = of_branches(make)
    student = job.make_student(0)
    setup = set_up(job, machine_for(job.recipe.training), student, job.plan(student), seed=0)
    with pytest.raises(RecipeError, match="no weight of the plan is made of cores"):
        job.optimizer(setup.student, job.plan(student), alignment=object())


@pytest.mark.slow
def test_the_whole_job(make: Any, tmp_path: Path) -> None:
    result = run(of_branches(make, export="true", verify="true"), tmp_path / "run")
    assert result.verdict in ("pass", "inconclusive")
    assert "repvgg" in (result.bundle / "plan.json").read_text(encoding="utf-8")
