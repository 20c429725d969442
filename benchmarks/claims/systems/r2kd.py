"""R2KD, arXiv 2311.13934: its three parts, each with and without the others.

Signals of MNIST-1D (arXiv 2011.14439), a teacher of 48 channels and a student of 8. Each of the
eight combinations is tuned on its own: the rate and the weight of its distillation loss, nine
trials on two seeds of the validation part. The effect of a part is the mean over the four
combinations of the others, paired by seed; the seeds are none of those that were tuned on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from claims.claim import Claim, Finding, System, paired
from claims.training import best, job_of, score, trained_teacher
from opdf_compile.distill.recipe import Job

TEACHER = """
[student]
model = "claims.networks:teacher"
[data]
source = "mnist1d?samples=4000"
[plan]
enabled = false
[[loss]]
kind = "task"
[optimizer]
name = "AdamW"
lr = 0.003
[training]
epochs = 40
device = "cpu"
"""
STUDENT = """
[student]
model = "claims.networks:student"
[teacher]
model = "claims.networks:teacher"
weights = "{teacher}"
{pruned}
[data]
source = "mnist1d?samples=4000"
[plan]
enabled = false
{look}
[[loss]]
{loss}
weight = {weight}
[[loss]]
kind = "task"
[optimizer]
name = "AdamW"
lr = {rate}
[training]
epochs = 12
device = "cpu"
"""
LOSSES = {
    False: 'kind = "hinton"\ntemperature = 4.0',
    True: 'kind = "correlation"\nrank = 1.0\ntemperature = 4.0',
}
LOOKS = {False: "", True: '[augment]\nkind = "mixup"'}
PRUNED = {False: "", True: "pruned = 0.1\npruned_share = 0.3"}
RATES, WEIGHTS = (0.003, 0.01, 0.03), {False: (0.5, 2.0, 8.0), True: (2.0, 8.0, 32.0)}
SEEDS = {True: 2, False: 32}
TUNED_ON = {True: (), False: (1000, 1001)}

# Of correlation, second look, pruned copy: which are there.
Parts = tuple[bool, bool, bool]
_BOTH = (False, True)
COMBINATIONS: tuple[Parts, ...] = tuple((a, b, c) for a in _BOTH for b in _BOTH for c in _BOTH)


def _claim(says: str, method: str, baseline: str) -> Claim:
    return Claim(
        system="R2KD",
        source="arXiv 2311.13934",
        says=says,
        task="MNIST-1D, 4,000 samples, 12 epochs, a student of 898 parameters",
        method=method,
        baseline=baseline,
        equal="steps",
        unit="points of test accuracy",
    )


CLAIMS = (
    _claim(
        "Correlation distance (classes, batch, ranks) is better than KL.",
        "correlation",
        "KL at temperature 4",
    ),
    _claim(
        "Distillation gains from an augmented second look.",
        "mixup of the distillation loss",
        "none",
    ),
    _claim(
        "A teacher mixed 0.7 / 0.3 with a copy pruned by 10 % is better than itself.",
        "the mix",
        "the teacher",
    ),
)
WHOLE = _claim(
    "All three together are better than tuned distillation.", "R2KD", "KL at temperature 4"
)


def _chosen(parts: Parts, folder: Path, teacher: Path, seeds: Sequence[int]) -> tuple[float, float]:
    """Rate and weight: tuned, or the middle of the grid."""
    weights = WEIGHTS[parts[0]]
    if not seeds:
        return RATES[1], weights[1]
    grid = {f"{rate} {weight}": (rate, weight) for rate, weight in product(RATES, weights)}
    jobs = {name: _job(parts, folder, teacher, *at) for name, at in grid.items()}
    return grid[best(jobs, seeds)]


def _job(parts: Parts, folder: Path, teacher: Path, rate: float, weight: float) -> Job:
    loss, look, pruned = parts
    return job_of(
        STUDENT,
        folder,
        teacher=teacher.name,
        loss=LOSSES[loss],
        look=LOOKS[look],
        pruned=PRUNED[pruned],
        rate=rate,
        weight=weight,
    )


def effects(scores: dict[Parts, list[float]]) -> list[tuple[list[float], list[float]]]:
    """For each part, by seed: the mean over the combinations with it, and over those without."""
    found = []
    for place in range(3):
        sides = []
        for there in (True, False):
            rows = [row for parts, row in scores.items() if parts[place] is there]
            sides.append([sum(column) / len(rows) for column in zip(*rows, strict=True)])
        found.append((sides[0], sides[1]))
    return found


def measure(small: bool, told: Callable[[str, float], None]) -> Sequence[Finding]:
    """The factorial; small: two seeds at the middle of the grid."""
    scores: dict[Parts, list[float]] = {}
    seconds: dict[Parts, float] = {}
    at: dict[Parts, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher = trained_teacher(TEACHER, folder)
        for place, parts in enumerate(COMBINATIONS):
            told(f"combination {place + 1} of 8", place / 8)
            at[parts] = _chosen(parts, folder, teacher, TUNED_ON[small])
            job = _job(parts, folder, teacher, *at[parts])
            found = [score(job, seed, "test") for seed in range(SEEDS[small])]
            scores[parts] = [100 * one.value for one in found]
            seconds[parts] = sum(one.seconds for one in found) / len(found)
    nothing, everything = COMBINATIONS[0], COMBINATIONS[-1]
    cost = seconds[everything] / seconds[nothing]
    remark = (
        f"{sum(scores[nothing]) / len(scores[nothing]):.1f} without any; it took {cost:.1f} times "
        f"the processor time; rate and weight {at[everything]} against {at[nothing]}."
    )
    rows = zip(CLAIMS, effects(scores), strict=True)
    return (
        *(paired(claim, *sides, "Mean over the others' four.") for claim, sides in rows),
        paired(WHOLE, scores[everything], scores[nothing], remark),
    )


SYSTEM = System("r2kd", measure)
