"""MixKD, arXiv 2011.00593: what a teacher's word on mixes is worth, by how many labels there are.

The paper distils BERT on GLUE. Here it is real handwritten digits, whose pixels are mixed, with 5,
20 and 100 % of the training images, for the same 300 steps. Both sides have the same distillation
loss on the images and the task loss on mixed labels; MixKD has the teacher on the mixes, too. Each
side is tuned for each share of the images (three rates, three weights, two seeds).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from claims.claim import Claim, Finding, System, paired
from claims.training import best, job_of, score
from opdf_compile.distill.demo.networks import trained_teacher
from opdf_compile.distill.recipe import Job, load_digits

RECIPE = """
[student]
model = "opdf_compile.distill.demo.networks:Student"
[teacher]
model = "opdf_compile.distill.demo.networks:Teacher"
weights = "teacher.safetensors"
[data]
source = "{source}"
batch = 32
[plan]
enabled = false
[augment]
kind = "mixup"
alpha = 0.4
teacher = {there}
labels = {weight}
[[loss]]
kind = "hinton"
temperature = 4.0
[[loss]]
kind = "task"
[optimizer]
name = "AdamW"
lr = {rate}
[training]
steps = 300
device = "cpu"
evaluate_every = 300
"""
SHARES = (0.05, 0.2, 1.0)
RATES, WEIGHTS = (0.003, 0.01, 0.03), (0.3, 1.0, 3.0)
SEEDS = {True: 3, False: 16}
TUNED_ON = (1000, 1001)


def _claim(share: float) -> Claim:
    return Claim(
        system="MixKD",
        source="arXiv 2011.00593",
        says="A teacher on the mixes is better than mixup of the student alone.",
        task=f"digits, {share:.0%} of the training images, 300 steps",
        method="MixKD",
        baseline="distillation with mixup of the labels alone",
        equal="steps",
        unit="points of test accuracy",
    )


def _written(share: float, folder: Path) -> str:
    """The digits with a share of the training images, each class in the same proportion."""
    arrays: dict[str, np.ndarray] = {}
    for name, part in load_digits().items():
        rows = [part[row] for row in range(len(part))]
        columns = {key: torch.stack([row[key] for row in rows]).numpy() for key in rows[0]}
        if name == "train":
            chosen = []
            for label in np.unique(columns["labels"]):
                places = np.flatnonzero(columns["labels"] == label)
                chosen.append(places[: max(1, round(share * len(places)))])
            kept = np.concatenate(chosen)
            columns = {key: column[kept] for key, column in columns.items()}
        arrays |= {f"{name}_{key}": column for key, column in columns.items()}
    file = folder / f"digits-{share:g}.npz"
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.name


def _chosen(source: str, there: float, folder: Path, *, tuned: bool) -> tuple[float, float]:
    """Rate and weight of the mixed labels."""
    if not tuned:
        return RATES[1], WEIGHTS[1]
    grid = {f"{rate} {weight}": (rate, weight) for rate, weight in product(RATES, WEIGHTS)}
    jobs = {name: _job(source, there, folder, *at) for name, at in grid.items()}
    return grid[best(jobs, TUNED_ON)]


def _job(source: str, there: float, folder: Path, rate: float, weight: float) -> Job:
    return job_of(RECIPE, folder, source=source, there=there, rate=rate, weight=weight)


def measure(small: bool, told: Callable[[str, float], None]) -> Sequence[Finding]:
    """Three shares of the images; small: three seeds at the middle of the grid."""
    findings = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        save_file(trained_teacher().state_dict(), folder / "teacher.safetensors")
        for place, share in enumerate(SHARES):
            told(f"{share:.0%} of the images", place / len(SHARES))
            source = _written(share, folder)
            sides, settings = [], []
            for there in (1.0, 0.0):
                at = _chosen(source, there, folder, tuned=not small)
                job = _job(source, there, folder, *at)
                sides.append([100 * score(job, seed, "test").value for seed in range(SEEDS[small])])
                settings.append(at)
            remark = (
                f"{sum(sides[1]) / len(sides[1]):.1f} without; rate and weight {settings[0]} "
                f"against {settings[1]}."
            )
            findings.append(paired(_claim(share), sides[0], sides[1], remark))
    return findings


SYSTEM = System("mixkd", measure)
