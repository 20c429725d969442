"""Runs whose student writes: bits after interruptions, the report, the exported student."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import END, SKEW, certain, gpt2, llama, pairs, written
from safetensors.torch import load_file
from torch import nn

import opdf_compile as opdf
from opdf_compile.distill.engine import Machine, Teaching, set_up, take_all
from opdf_compile.distill.generation import Sampling, respond
from opdf_compile.distill.recipe import Job, prepare, read_recipe
from opdf_compile.distill.run import Stepped, run

# Any rise counts, and one rise means half of all batches.
OFTEN = (
    '[generation]\npolicy = "adaptive"\nmax_new_tokens = 5\nbuffer = 16\nrise = 0.5\n'
    "tolerance = 1e-9\n"
)
SHORT = "epochs = 4\ncheckpoint_every = 3\nevaluate_every = 2"


class Killed(BaseException):
    """Ends a run where it is raised; nothing of ours catches it."""


def dies_at(step: int) -> Callable[[Any], None]:
    def watch(event: Any) -> None:
        if isinstance(event, Stepped) and event.step == step:
            raise Killed

    return watch


def job_of(folder: Path, **values: str) -> Job:
    return prepare(read_recipe(written(folder, **values)), base=folder)


@pytest.mark.parametrize(
    "plan", ["cores = 2", pytest.param("enabled = false", marks=pytest.mark.slow)]
)
def test_interruptions_leave_the_bits_alone(
    plan: str, tmp_path: Path, outcome: Callable[[Path], dict[str, Any]]
) -> None:
    """With dropout, so that torch's own random numbers matter, and after the buffer is full."""
    values = {"generation": OFTEN, "training": SHORT, "student": "shaky", "plan": plan}
    run(job_of(tmp_path, **values), tmp_path / "whole")
    for step in (5, 13):
        with pytest.raises(Killed):
            run(job_of(tmp_path, **values), tmp_path / "parts", watch=dies_at(step))
    run(job_of(tmp_path, **values), tmp_path / "parts")
    whole = outcome(tmp_path / "whole")
    assert outcome(tmp_path / "parts") == whole
    last = [entry for entry in whole["log"] if entry["event"] == "generation"][-1]
    assert min(last["counts"][name] for name in ("data", "student", "buffer")) > 0
    assert last["phi"] >= 0.5


def test_the_report_counts_and_times_what_was_written(tmp_path: Path) -> None:
    values = {"generation": OFTEN, "training": SHORT}
    run(job_of(tmp_path, **values), tmp_path / "run")
    found = json.loads((tmp_path / "run" / "report.json").read_text())["generation"]
    assert found["policy"] == "adaptive"
    assert sum(found["batches"].values()) == 20
    assert found["tokens"] >= 8 * found["batches"]["student"] > 0
    assert found["seconds"] > 0
    page = (tmp_path / "run" / "report.md").read_text()
    assert f"| tokens written | {found['tokens']:,} |" in " ".join(page.split(" ")), page
    run(job_of(tmp_path), tmp_path / "data")
    assert json.loads((tmp_path / "data" / "report.json").read_text())["generation"] is None


RECIPE = """
[student]
model = "hf:student"
[teacher]
model = "hf:teacher"
[data]
source = "code.py:data"
batch = 8
{generation}
[language]
{losses}
[plan]
cores = 3
[optimizer]
lr = 0.05
[training]
steps = 16
evaluate_every = 2
[verify]
budget = 2.0
"""


@pytest.mark.slow
@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_language_model_is_distilled_folded_exported_and_verified(
    make: Callable[..., nn.Module], tmp_path: Path
) -> None:
    """A model of transformers, with the adaptive policy, from two folders to a bundle."""
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "student")
    certain(make(32), 10).save_pretrained(tmp_path / "teacher")
    written(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(generation=OFTEN, losses=SKEW))
    job = prepare(read_recipe(tmp_path / "recipe.toml"), base=tmp_path)
    result = run(job, tmp_path / "run")
    assert result.bundle is not None
    report = json.loads((result.bundle / "report.json").read_text())
    assert report["structure"]["verdict"] == report["numerics"]["verdict"] == "pass"
    assert json.loads((tmp_path / "run" / "report.json").read_text())["generation"]["tokens"] > 0
    assert load_file(result.weights).keys() >= dict(job.make_student(0).named_parameters()).keys()


@pytest.mark.parametrize("make", [gpt2, pytest.param(llama, marks=pytest.mark.slow)])
def test_the_folded_student_writes_what_the_trained_one_writes(
    make: Callable[..., nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "student")
    certain(make(32), 10).save_pretrained(tmp_path / "teacher")
    written(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(generation=OFTEN, losses=SKEW))
    job = prepare(read_recipe(tmp_path / "recipe.toml"), base=tmp_path)
    machine, student = Machine(torch.device("cpu")), job.make_student(0)
    setup = set_up(job, machine, student, job.plan(student), seed=0)
    take_all(setup, Teaching(job, machine.teacher(job.teacher), machine), 0, lambda *_: None)
    assert isinstance(setup.optimizer, opdf.Overparam)
    prompts = [torch.tensor(row["prompt"]) for row in pairs(12, 2)]
    trained, folded, before = (
        tokens(model, prompts) for model in (student, setup.deployed(), job.make_student(0))
    )
    assert folded == trained
    assert folded != before


def tokens(model: nn.Module, prompts: list[torch.Tensor]) -> list[list[int]]:
    """What it writes, the most probable token each time."""
    found = respond(model, prompts, Sampling(8, temperature=0), end=END, seed=0)
    return [response.tolist() for response in found]
