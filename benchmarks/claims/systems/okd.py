"""Online modules in the teacher (after OKD, arXiv 2409.12512; no code is public, so our reading).

The grammar of DistiLLM's experiment, a teacher of a million parameters and a student 25 times
smaller. Both sides learn by skew KL and the labels; one follows the teacher's kept answers, the
other a teacher with paths of rank 8 that learn along. A step of the second costs a forward and a
backward of the teacher, so there are two rows: as many steps, and as much processor time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from claims.claim import Claim, Finding, System, paired
from claims.systems.distillm_task import GRAMMAR, Grammar, Transformer, fitted, teacher
from opdf_compile.distill.engine import (
    Batches,
    Machine,
    Remembered,
    Teaching,
    joined,
    set_up,
    spans,
    take_all,
)
from opdf_compile.distill.recipe import Job, parse_recipe, prepare

RECIPE = """
[student]
model = "claims.systems.okd:student"
[teacher]
model = "claims.systems.distillm_task:teacher"
[data]
source = "claims.systems.distillm_task:data"
batch = 32
[language]
end = 0
[plan]
enabled = false
{online}
[[loss]]
kind = "skew-kl"
[[loss]]
kind = "task"
[optimizer]
lr = {rate}
[training]
steps = {steps}
clip = 1.0
"""
ONLINE = "[online]\nrank = 8\nlr = 0.001"
RATES = (1e-3, 3e-3, 1e-2)
TUNED_ON = 100


class Size(NamedTuple):
    """How much is computed."""

    teacher: int
    steps: int
    seeds: int
    rates: tuple[float, ...]
    sequences: int


SIZES = {True: Size(60, 30, 2, RATES[1:2], 64), False: Size(300, 200, 5, RATES, 256)}


def student() -> nn.Module:
    """Three blocks of width 32: 40 thousand parameters."""
    return Transformer(32, 3)


def _claim(equal: str) -> Claim:
    return Claim(
        system="OKD",
        source="arXiv 2409.12512",
        says=f"A teacher with modules that learn along gives a better student, at equal {equal}.",
        task="sequences of a grammar with exact probabilities; a teacher of 25 times the student",
        method="paths of rank 8 in the teacher, skew KL and labels",
        baseline="skew KL to the frozen teacher and labels, rate tuned in as many trials",
        equal=equal,
        unit="nats per sequence that KL(grammar || student) is lower",
    )


class Bench:
    """A trained teacher, its kept answers, and what students of a recipe come to."""

    def __init__(self, size: Size) -> None:
        self.size, self.grammar = size, Grammar.drawn(GRAMMAR)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.teacher = fitted(teacher(), self.grammar, size.teacher, 16_384, 11).eval()
        self._kept: Remembered | None = None

    def run(self, online: bool, rate: float, steps: int, seed: int) -> tuple[float, float]:
        """KL(grammar || student) after the last step, and processor seconds of a step."""
        job, machine = self._job(online, rate, steps), Machine(torch.device("cpu"))
        model = job.make_student(seed)
        setup = set_up(job, machine, model, None, seed=seed)
        teaching = self._teaching(job, machine)
        began = time.process_time()
        take_all(setup, teaching, seed, lambda _step, _loss: None)
        seconds = (time.process_time() - began) / steps
        return self.grammar.divergences(model, 77, self.size.sequences)[0], seconds

    def tuned(self, online: bool, steps: int) -> float:
        """The rate that ends best, on a seed that nothing is reported of."""
        rates = self.size.rates
        if len(rates) == 1:
            return rates[0]
        return min(rates, key=lambda rate: self.run(online, rate, steps, TUNED_ON)[0])

    def _job(self, online: bool, rate: float, steps: int) -> Job:
        text = RECIPE.format(online=ONLINE if online else "", rate=rate, steps=steps)
        job = prepare(parse_recipe(text), base=Path())
        assert job.teacher is not None
        job.teacher.load_state_dict(self.teacher.state_dict())
        return job

    def _teaching(self, job: Job, machine: Machine) -> Teaching:
        """The teacher's own logits are kept, as `[teacher] cache = true` does."""
        if self._kept is None:
            batches, asked = Batches(job.data, machine), Teaching(job, self.teacher, machine)
            pieces: list[dict[str, Tensor]] = [
                asked.outputs(self.teacher, batches.of(job.data.train, some))
                for some in spans(len(job.data.train), 128)
            ]
            self._kept = Remembered(joined(pieces, "train", ragged=True))
        return Teaching(job, self.teacher, machine, {"train": self._kept})


def measure(small: bool, told: Callable[[str, float], None]) -> Sequence[Finding]:
    """Both rows; small: two seeds, one rate, few steps."""
    size = SIZES[small]
    told("trains the teacher", 0.0)
    bench = Bench(size)
    steps = size.steps
    costs = [bench.run(online, RATES[1], 10, TUNED_ON)[1] for online in (True, False)]
    longer = max(steps, round(steps * costs[0] / costs[1]))
    told("tunes", 0.1)
    kinds = {"online": (True, steps), "steps": (False, steps), "time": (False, longer)}
    rates = {name: bench.tuned(*kind) for name, kind in kinds.items()}
    scores: dict[str, list[float]] = {name: [] for name in kinds}
    for seed in range(size.seeds):
        told(f"seed {seed + 1}", 0.4 + 0.6 * seed / size.seeds)
        for name, (online, length) in kinds.items():
            # Lower is better; the claims are of what is gained.
            scores[name].append(-bench.run(online, rates[name], length, seed)[0])
    findings = []
    for name, length in (("steps", steps), ("time", longer)):
        ours, theirs = (-sum(scores[key]) / size.seeds for key in ("online", name))
        remark = (
            f"{ours:.3g} against {theirs:.3g}, {steps} steps against {length}; rates "
            f"{rates['online']:g} and {rates[name]:g}."
        )
        findings.append(paired(_claim(name), scores["online"], scores[name], remark))
    return findings


SYSTEM = System("okd", measure)
