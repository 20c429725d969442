"""Students of a recipe, trained seed by seed in memory; their scores on a part of the data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from opdf_compile.distill.engine import Evaluation, Teaching, fit, machine_for, set_up, take_all
from opdf_compile.distill.recipe import Job, parse_recipe, prepare


@dataclass(frozen=True)
class Score:
    """One student.

    Attributes:
        value: The recipe's metric.
        seconds: Of its training, of the processor.
    """

    value: float
    seconds: float


def job_of(text: str, folder: Path, **values: object) -> Job:
    """A recipe with values in place of its names in braces."""
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    return prepare(parse_recipe(text), base=folder)


def trained_teacher(text: str, folder: Path) -> Path:
    """The weights of the recipe's student after its last step, as a file in the folder."""
    file = folder / "teacher.safetensors"
    save_file(fit(job_of(text, folder)).state_dict(), file)
    return file


def score(job: Job, seed: int, part: str) -> Score:
    """The student of a seed after its last step."""
    machine = machine_for(job.recipe.training)
    student = machine.widened(job.make_student(seed))
    setup = set_up(job, machine, student, job.plan(student), seed=seed)
    teaching = Teaching(job, machine.teacher(job.teacher), machine)
    began = time.process_time()
    take_all(setup, teaching, seed, lambda _step, _loss: None)
    seconds = time.process_time() - began
    model: nn.Module = setup.deployed()
    return Score(Evaluation(job, setup.batches, teaching).of(model, part), seconds)


def best(jobs: Mapping[str, Job], seeds: Sequence[int]) -> str:
    """The name of the job whose students are best on the validation part, on average."""
    means = {
        name: sum(score(job, seed, "validation").value for seed in seeds) / len(seeds)
        for name, job in jobs.items()
    }
    return max(means, key=lambda name: means[name])
