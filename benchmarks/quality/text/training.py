"""One run of the study on text: real training steps of the product, and the endpoints."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import opdf_compile as opdf
from quality.fleet import schedule
from quality.text.corpus import Corpus, embed, embed_all

BATCH = 32
# Of the steps; the average of EMA looks back over the same share of the run.
WARM_UP = 0.1
CORES = {"mpo": 3, "svd": 2, "frozen": 3}


@dataclass(frozen=True)
class Spec:
    """One run.

    Attributes:
        start: "warm" or "random".
        steps: Optimizer steps.
        method: "plain", "mpo" (n = 3), "svd" (n = 2) or "frozen" (n = 3, middle cores fixed).
        lr: Peak learning rate.
        weight_decay: Decoupled decay of W, for every method.
        momentum: AdamW's beta_1.
        seed: Random start weights, and the order of the sentences.
    """

    start: str
    steps: int
    method: str
    lr: float
    weight_decay: float
    momentum: float
    seed: int

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def train(corpus: Corpus, spec: Spec) -> dict[str, float]:
    """Train one student, and say how near it comes to the teacher and to people.

    Returns:
        Mean cosine to the teacher on validation and test sentences, the correlation of its
        similarities of documents with people's, all three also for the exponential average
        (`ema_..`), and seconds of training.
    """
    student = corpus.student(spec.start, spec.seed)
    optimizer = _optimizer(student, spec)
    average = {n: p.detach().clone() for n, p in student.named_parameters()}
    orders = torch.Generator().manual_seed(spec.seed)
    order: list[Tensor] = []
    started = time.perf_counter()
    student.train()
    for step in range(spec.steps):
        if not order:
            rows = torch.randperm(len(corpus.ids["train"]), generator=orders)
            order = [
                b.to(corpus.ratings.device) for b in torch.split(rows, BATCH) if len(b) == BATCH
            ]
        for group in optimizer.param_groups:
            group["lr"] = spec.lr * schedule(step, spec.steps)
        _step(student, optimizer, corpus, order.pop())
        _follow(average, student, spec.steps)
    seconds = time.perf_counter() - started
    found = {**_endpoints(student, corpus), "seconds": seconds}
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter.copy_(average[name])
    return {**found, **{f"ema_{k}": v for k, v in _endpoints(student, corpus).items()}}


def _step(
    student: nn.Module, optimizer: torch.optim.Optimizer, corpus: Corpus, rows: Tensor
) -> None:
    """Loss: one minus the cosine to the teacher, mean over the batch."""
    made = embed(student, corpus.ids["train"][rows], corpus.pad)
    loss = 1 - (made * corpus.targets["train"][rows]).sum(1).mean()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _optimizer(student: nn.Module, spec: Spec) -> torch.optim.Optimizer:
    options: dict[str, Any] = {
        "lr": spec.lr,
        "weight_decay": spec.weight_decay,
        "betas": (spec.momentum, 0.999),
    }
    if spec.method == "plain":
        return torch.optim.AdamW(student.parameters(), **options)
    optimizer = opdf.Overparam(
        student, torch.optim.AdamW, cores=CORES[spec.method], batched=True, **options
    )
    if spec.method == "frozen":
        for unit in optimizer.program.units:
            for core in unit.storage[1:-1]:
                core.requires_grad_(False)
            unit.forget()
    return optimizer


@torch.no_grad()
def _follow(average: dict[str, Tensor], student: nn.Module, steps: int) -> None:
    share = min(1.0, 1 / max(1.0, WARM_UP * steps))
    torch._foreach_lerp_(list(average.values()), [p.detach() for p in student.parameters()], share)


def _endpoints(student: nn.Module, corpus: Corpus) -> dict[str, float]:
    found = {
        part: embed_all(student, corpus.ids[part], corpus.pad)
        for part in corpus.ids
        if part != "train"
    }
    cosines = {
        f"{part}_cosine": float((found[part] * corpus.targets[part]).sum(1).mean())
        for part in ("validation", "test")
    }
    return {**cosines, "people": correlation(found["documents"], corpus.ratings)}


def correlation(embeddings: Tensor, ratings: Tensor) -> float:
    """Pearson's, between cosines of pairs of documents and what people say of the pairs.

    Args:
        embeddings: ``(documents, width)``, of norm 1.
        ratings: ``(documents, documents)``; the upper triangle counts.
    """
    wide = embeddings.double()
    rows, cols = torch.triu_indices(len(wide), len(wide), 1, device=wide.device)
    pairs = torch.stack(((wide @ wide.T)[rows, cols], ratings[rows, cols]))
    return float(torch.corrcoef(pairs)[0, 1])
