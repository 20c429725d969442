"""One training run: a fixed number of AdamW steps with a warm-up and a cosine decay.

The order of the images depends on the seed alone, so two runs with one seed see the same batches.
Weight decay is off, because it means different things for weights and for cores.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opdf_compile.distill.digits import Split

# Maps logits and the indices of their images to a mean loss.
Loss = Callable[[Tensor, Tensor], Tensor]
_WARM_UP = 0.1


@dataclass(frozen=True)
class Curve:
    """A run, epoch by epoch.

    Attributes:
        loss: Mean training loss.
        accuracy: Validation accuracy, 0 to 1.
        cross_entropy: Validation cross-entropy in nats; breaks ties of the accuracy.
        seconds: Wall time of the whole run.
    """

    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    cross_entropy: tuple[float, ...]
    seconds: float


def fit(
    model: nn.Module,
    train: Split,
    validation: Split,
    *,
    loss: Loss,
    rate: float,
    epochs: int,
    batch: int,
    seed: int,
) -> Curve:
    """Train a model in place and leave it in eval mode.

    Args:
        model: Maps images to logits; its parameters are trained.
        train: What it learns from; an incomplete last batch is left out.
        validation: What its progress is measured on.
        loss: Of logits ``(b, classes)`` and the indices ``(b,)`` of their images in `train`.
        rate: Peak learning rate.
        epochs: Passes over `train`.
        batch: Images per step.
        seed: Where the order of the images starts.
    """
    started = time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    per_epoch = max(1, len(train) // batch)
    total = epochs * per_epoch
    losses, accuracies, entropies, step = [], [], [], 0
    for _epoch in range(epochs):
        model.train()
        order = torch.randperm(len(train), generator=generator)
        running = 0.0
        for indices in torch.split(order, batch)[:per_epoch]:
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule(step, total)
            optimizer.zero_grad()
            value = loss(model(train.images[indices]), indices)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            running += float(value.detach())
            step += 1
        losses.append(running / per_epoch)
        accuracy, entropy = score(model, validation)
        accuracies.append(accuracy)
        entropies.append(entropy)
    seconds = time.perf_counter() - started
    return Curve(tuple(losses), tuple(accuracies), tuple(entropies), seconds)


def schedule(step: int, total: int) -> float:
    """The share of the peak rate at a step: linear up, then half a cosine down to zero."""
    warm = max(1, round(_WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def score(model: nn.Module, split: Split) -> tuple[float, float]:
    """Accuracy (0 to 1) and cross-entropy (nats) in eval mode, where the model stays."""
    model.eval()
    with torch.no_grad():
        logits = model(split.images)
        right = int((logits.argmax(1) == split.labels).sum())
        return right / len(split), float(F.cross_entropy(logits, split.labels))


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Seed torch for a block on one thread; the caller's random state and threads come back.

    One thread: networks this small gain nothing from two, and sums keep their order.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
