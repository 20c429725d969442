"""DistiLLM, arXiv 2402.03898, on a grammar whose sequences have exact probabilities.

A student of 0.2 M parameters and a teacher of 1 M. The teacher has learned a grammar by cross
entropy, the student begins after some steps of the same, and is then distilled by a recipe of the
package. What counts is not the teacher but the grammar: the divergence between its sequences and
those of the student, either way round (`distillm_task`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from claims.claim import Claim, Finding, System, paired
from claims.systems.distillm_task import GRAMMAR, Grammar, fitted, student, teacher
from opdf_compile.distill.engine import (
    Batches,
    Machine,
    Remembered,
    Teaching,
    TrainingStep,
    joined,
    set_up,
    spans,
)
from opdf_compile.distill.losses import SkewKL
from opdf_compile.distill.recipe import Job, parse_recipe, prepare
from opdf_compile.io import fixed_randomness, seeded

ALPHA = 0.1
RATES = (1e-3, 3e-3)
# What is tuned on is no seed that is reported.
TUNED_ON = 100
_RECIPE = """
[student]
model = "claims.systems.distillm_task:student"
[teacher]
model = "claims.systems.distillm_task:teacher"
[data]
source = "claims.systems.distillm_task:data"
batch = 32
[language]
end = 0
[generation]
policy = "{policy}"
max_new_tokens = 16
[plan]
enabled = false
{losses}
[optimizer]
lr = {rate}
[training]
steps = {steps}
evaluate_every = {every}
clip = 1.0
"""
_LOSS = '[[loss]]\nkind = "{kind}"\nalpha = {alpha}\n'
LOSSES = {
    "KL": _LOSS.format(kind="skew-kl", alpha=0.0),
    "skew KL": _LOSS.format(kind="skew-kl", alpha=ALPHA),
    "reverse KL": _LOSS.format(kind="reverse-skew-kl", alpha=0.0),
    "skew reverse KL": _LOSS.format(kind="reverse-skew-kl", alpha=ALPHA),
}


class Size(NamedTuple):
    """How much is computed."""

    teacher: int
    first: int
    steps: int
    every: int
    seeds: int
    rates: tuple[float, ...]
    sequences: int


SIZES = {
    True: Size(40, 10, 20, 5, 2, RATES[:1], 64),
    False: Size(300, 60, 160, 20, 4, RATES, 96),
}
_WHERE: dict[str, Any] = {
    "system": "DistiLLM",
    "source": "arXiv 2402.03898",
    "task": "sequences of a grammar with exact probabilities; 0.2 M student, 1 M teacher",
}
BOUNDED = Claim(
    **_WHERE,
    says="The gradient of skew KL is bounded where that of KL is not.",
    method="the largest derivative by a probability of the student's, of KL",
    baseline="(1 - a) / a = 9, which that of skew KL cannot pass",
    equal="student",
    unit="times the bound",
    above=1.0,
)
BY_LOGITS = Claim(
    **_WHERE,
    says="So its gradient is smaller where training sees it.",
    method="largest norm of a row's derivative by the logits, of KL",
    baseline="the same of skew KL",
    equal="student",
    unit="times",
    above=1.0,
)


def _better(kind: str, claim: str) -> Claim:
    return Claim(
        **_WHERE,
        says=claim,
        method=f"{kind}, rate tuned",
        baseline=f"{kind.removeprefix('skew ')}, rate tuned in as many trials",
        equal="steps",
        unit="nats per sequence that KL(grammar || student) is lower",
    )


FORWARD = _better("skew KL", "Skew KL gives a better student than KL.")
REVERSE = _better("skew reverse KL", "Skew reverse KL gives a better student than reverse KL.")
FASTER = Claim(
    **_WHERE,
    says="The adaptive off-policy scheduler needs 2.5 to 4.3 times less time than on-policy.",
    method="policy adaptive, skew KL, rate tuned",
    baseline="policy on, skew KL, rate tuned in as many trials",
    equal="KL(student || grammar): what the worse of both ends with",
    unit="times: on-policy's processor time over its own",
    above=2.5,
)


class Run(NamedTuple):
    """One distillation.

    Attributes:
        data: KL(grammar || student) at the end.
        curve: Processor seconds, and KL(student || grammar) then.
        tokens: What the student wrote.
        phi: Of the adaptive policy, at the end.
    """

    data: float
    curve: list[tuple[float, float]]
    tokens: int
    phi: float

    @property
    def writing(self) -> float:
        """KL(student || grammar) at the end."""
        return self.curve[-1][1]


def reached(run: Run, goal: float) -> float:
    """Seconds until the run was as good as a goal that it reaches."""
    return next(seconds for seconds, value in run.curve if value <= goal)


def speed_up(slow: Run, fast: Run) -> float:
    """Seconds of one over those of the other, to what the worse of both ends with."""
    goal = max(slow.writing, fast.writing)
    return reached(slow, goal) / reached(fast, goal)


class Bench:
    """Teacher, grammar, and what was kept of them for all runs."""

    def __init__(self, size: Size) -> None:
        self.size, self.grammar = size, Grammar.drawn(GRAMMAR)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.teacher = fitted(teacher(), self.grammar, size.teacher, 16_384, 11).eval()
        self._starts: dict[int, dict[str, Tensor]] = {}
        self._kept: Remembered | None = None

    def start(self, seed: int) -> nn.Module:
        """The student of a seed, which knows a little of the grammar."""
        if seed not in self._starts:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                made = fitted(student(), self.grammar, self.size.first, 1024, seed)
            self._starts[seed] = {k: v.clone() for k, v in made.state_dict().items()}
        model = student()
        model.load_state_dict(self._starts[seed])
        return model

    def job(self, policy: str, losses: str, rate: float) -> Job:
        """A recipe of this bench."""
        size = self.size
        text = _RECIPE.format(
            policy=policy, losses=losses, rate=rate, steps=size.steps, every=size.every
        )
        return prepare(parse_recipe(text), base=Path())

    def run(self, policy: str, losses: str, rate: float, seed: int) -> Run:
        """Distil; what is measured on the way takes no time of the run's."""
        job, machine = self.job(policy, losses, rate), Machine(torch.device("cpu"))
        model = self.start(seed)
        setup = set_up(job, machine, model, None, seed=seed)
        step = TrainingStep(setup, self._teaching(job, machine))
        curve, spent = [], 0.0
        with seeded(seed), fixed_randomness():
            for number in range(setup.steps):
                began = time.process_time()
                step(number)
                spent += time.process_time() - began
                if (number + 1) % self.size.every == 0:
                    data, writing = self.grammar.divergences(model, 77, self.size.sequences)
                    model.train()
                    curve.append((spent, writing))
        state = step.source.state()
        return Run(data, curve, state["counts"].get("tokens", 0), state["phi"])

    def tuned(self, policy: str, losses: str) -> float:
        """The rate that ends best, on a seed that nothing is reported of."""
        rates = self.size.rates
        if len(rates) == 1:
            return rates[0]
        return min(rates, key=lambda rate: self._score(policy, losses, rate))

    def _score(self, policy: str, losses: str, rate: float) -> float:
        found = self.run(policy, losses, rate, TUNED_ON)
        # Where the student writes, by what it writes.
        return found.data if policy == "data" else found.writing

    def _teaching(self, job: Job, machine: Machine) -> Teaching:
        """The teacher's logits on the data are kept, as `[teacher] cache = true` does."""
        if self._kept is None:
            batches, asked = Batches(job.data, machine), Teaching(job, self.teacher, machine)
            pieces = [
                asked.outputs(self.teacher, batches.of(job.data.train, some))
                for some in spans(len(job.data.train), 128)
            ]
            self._kept = Remembered(joined(pieces, "train", ragged=True))
        return Teaching(job, self.teacher, machine, {"train": self._kept})


def derivatives(ours: Tensor, theirs: Tensor, alpha: float) -> tuple[float, float]:
    """The largest derivative of a row's loss by a probability, and norm of that by its logits.

    Args:
        ours: The student's logits ``(rows, n)``, float64.
        theirs: The teacher's.
        alpha: The skew; 0 is KL.
    """
    p, q = theirs.softmax(-1), ours.softmax(-1).requires_grad_()
    value = (p * (p.log() - (alpha * p + (1 - alpha) * q).log())).sum()
    (by_q,) = torch.autograd.grad(value, q)
    logits = ours.detach().clone().requires_grad_()
    (by_z,) = torch.autograd.grad(SkewKL(alpha, reduction="sum")(logits, theirs), logits)
    return float(by_q.abs().max()), float(by_z.norm(dim=-1).max())


def gradients(bench: Bench, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """`derivatives` of KL and of skew KL, on sequences of the grammar, of a student's start."""
    rows = [torch.tensor(r["prompt"] + r["response"]) for r in bench.grammar.sequences(64, 5)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    models = bench.start(seed), bench.teacher
    with torch.no_grad():
        pair = [model.eval()(ids).double().flatten(0, 1) for model in models]
    plain, skewed = (derivatives(pair[0], pair[1], alpha) for alpha in (0.0, ALPHA))
    return plain, skewed


def measure(small: bool, told: Callable[[str, float], None]) -> Sequence[Finding]:
    """All claims, each over seeds of the student's start, the order and what is drawn."""
    told("a teacher", 0.0)
    bench = Bench(SIZES[small])
    seeds = range(bench.size.seeds)
    return (
        *_gradient_findings(bench, seeds),
        *_loss_findings(bench, seeds, told),
        _policy_finding(bench, seeds, told),
    )


def _gradient_findings(bench: Bench, seeds: range) -> tuple[Finding, Finding]:
    found = [gradients(bench, seed) for seed in seeds]
    bound, nothing = (1 - ALPHA) / ALPHA, [0.0] * len(seeds)
    largest = max(skewed[0] for _, skewed in found)
    remark = f"That of skew KL is {largest:.3g} at most; its bound is {bound:g}."
    by_q = [plain[0] / bound for plain, _ in found]
    by_z = [plain[1] / skewed[1] for plain, skewed in found]
    told = "By the logits KL's own derivative, q - p, is below the root of 2."
    return paired(BOUNDED, by_q, nothing, remark), paired(BY_LOGITS, by_z, nothing, told)


def _loss_findings(
    bench: Bench, seeds: range, told: Callable[[str, float], None]
) -> tuple[Finding, Finding]:
    runs: dict[str, list[Run]] = {}
    for place, (name, losses) in enumerate(LOSSES.items()):
        told(name, 0.2 + 0.08 * place)
        rate = bench.tuned("data", losses)
        runs[name] = [bench.run("data", losses, rate, seed) for seed in seeds]

    def finding(claim: Claim, name: str) -> Finding:
        rival = name.removeprefix("skew ")
        ours, theirs = ([run.data for run in runs[key]] for key in (name, rival))
        written = " and ".join(
            f"{_mean([run.writing for run in runs[key]]):.3g} ({key})" for key in (name, rival)
        )
        remark = f"Of what the student writes, KL(student || grammar) is {written}."
        return paired(claim, [-value for value in ours], [-value for value in theirs], remark)

    return finding(FORWARD, "skew KL"), finding(REVERSE, "skew reverse KL")


def _policy_finding(bench: Bench, seeds: range, told: Callable[[str, float], None]) -> Finding:
    runs: dict[str, list[Run]] = {}
    losses = LOSSES["skew KL"]
    for place, policy in enumerate(("adaptive", "on")):
        told(policy, 0.52 + 0.12 * place)
        rate = bench.tuned(policy, losses)
        runs[policy] = [bench.run(policy, losses, rate, seed) for seed in seeds]
    on, adaptive = runs["on"], runs["adaptive"]
    speeds = [speed_up(slow, fast) for slow, fast in zip(on, adaptive, strict=True)]
    ends = [_mean([run.writing for run in some]) for some in (on, adaptive)]
    tokens = [_mean([float(run.tokens) for run in some]) for some in (on, adaptive)]
    remark = (
        f"On-policy wrote {tokens[0]:,.0f} tokens and ends at {ends[0]:.3g} nats, the adaptive "
        f"policy wrote {tokens[1]:,.0f} and ends at {ends[1]:.3g}; its phi ended at "
        f"{_mean([run.phi for run in adaptive]):.2g}."
    )
    if not tokens[1]:
        remark += " So it trained on the data alone: its validation loss never rose."
    return paired(FASTER, speeds, [0.0] * len(seeds), remark)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


SYSTEM = System("distillm", measure)
