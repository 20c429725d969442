"""Every loss with its formula in numpy, float64, written from the sources and not from the code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit, log_softmax, softmax
from torch import Tensor

from opdf_compile.distill.losses import (
    CorrelationLoss,
    CosineLoss,
    HiddenStateLoss,
    HintonKD,
    Loss,
    ReverseSkewKL,
    SkewKL,
    TaskLoss,
)

Array = np.ndarray
N = 5  # Classes, or the student's features.
WIDE = 8  # The teacher's features.


@dataclass(frozen=True)
class Case:
    """A loss, its formula (student rows, teacher rows, the module -> a value per row), a target."""

    make: Callable[..., Loss]
    rows: Callable[[Array, Array, Loss], Array]
    target: Callable[[tuple[int, ...]], Tensor]

    def inputs(self, *leading: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        student = torch.randn(*leading, N, dtype=torch.float64).to(dtype)
        target = self.target(leading)
        return student, target.to(dtype) if target.is_floating_point() else target


def logits(leading: tuple[int, ...]) -> Tensor:
    return 2 * torch.randn(*leading, N, dtype=torch.float64)


def wide(leading: tuple[int, ...]) -> Tensor:
    return torch.randn(*leading, WIDE, dtype=torch.float64)


def classes(leading: tuple[int, ...]) -> Tensor:
    return torch.randint(N, leading)


def yes_or_no(leading: tuple[int, ...]) -> Tensor:
    return torch.randint(2, (*leading, N))


def kl(p: Array, q: Array) -> Array:
    return (p * np.log(p / q)).sum(-1)


def hinton(z: Array, t: Array, _loss: Loss) -> Array:
    return 9.0 * kl(softmax(t / 3, -1), softmax(z / 3, -1))


def skew(share: float) -> Callable[[Array, Array, Loss], Array]:
    def rows(z: Array, t: Array, _loss: Loss) -> Array:
        p, q = softmax(t, -1), softmax(z, -1)
        return kl(p, share * p + (1 - share) * q)

    return rows


def reverse_skew(share: float) -> Callable[[Array, Array, Loss], Array]:
    return lambda z, t, loss: skew(share)(t, z, loss)


def cosine(a: Array, b: Array, axis: int) -> Array:
    return (a * b).sum(axis) / np.sqrt((a * a).sum(axis) * (b * b).sum(axis))


def over_classes(z: Array, t: Array, _loss: Loss) -> Array:
    return 1 - np.abs(cosine(softmax(t / 4, -1), softmax(z / 4, -1), -1))


def over_batch(z: Array, t: Array, _loss: Loss) -> Array:
    p, q = (softmax(x / 4, -1).reshape(-1, N) for x in (t, z))
    return np.full(z.shape[:-1], (1 - np.abs(cosine(p, q, 0))).mean())


def ranks(x: Array, sharpness: float) -> Array:
    """Soft ranks, one pair at a time."""
    found = np.zeros_like(x)
    for row, out in zip(x.reshape(-1, x.shape[-1]), found.reshape(-1, x.shape[-1]), strict=True):
        for i, value in enumerate(row):
            out[i] = sum(expit((value - other) / (sharpness * row.std())) for other in row)
    return found


def over_ranks(z: Array, t: Array, _loss: Loss) -> Array:
    a, b = (ranks(x, 0.5).reshape(-1, N) for x in (z, t))
    r = [np.corrcoef(one, other)[0, 1] for one, other in zip(a, b, strict=True)]
    return 1 - np.array(r).reshape(z.shape[:-1])


def all_three(z: Array, t: Array, loss: Loss) -> Array:
    return (
        2 * over_classes(z, t, loss) + 0.5 * over_batch(z, t, loss) + 0.25 * over_ranks(z, t, loss)
    )


def projected(z: Array, loss: Loss) -> Array:
    """By the module's own matrix; that it is orthonormal is another test."""
    module = loss.projection
    return z if module is None else z @ module.weight.detach().double().numpy().T


def hidden(z: Array, t: Array, loss: Loss) -> Array:
    return ((projected(z, loss) - t) ** 2).mean(-1)


def direction(z: Array, t: Array, loss: Loss) -> Array:
    return 1 - cosine(projected(z, loss), t, -1)


def cross_entropy(z: Array, y: Array, _loss: Loss) -> Array:
    hot = 0.8 * np.eye(N)[y] + 0.2 / N
    return -(hot * log_softmax(z, -1)).sum(-1)


def squares(z: Array, y: Array, _loss: Loss) -> Array:
    return ((z - y) ** 2).mean(-1)


def binary(z: Array, y: Array, _loss: Loss) -> Array:
    return -(y * np.log(expit(z)) + (1 - y) * np.log(expit(-z))).mean(-1)


def options(loss: type[Loss], *args: object, **kwargs: object) -> Callable[..., Loss]:
    return lambda **more: loss(*args, **kwargs, **more)


CASES = {
    "hinton": Case(options(HintonKD, 3.0), hinton, logits),
    "skew": Case(options(SkewKL, 0.1), skew(0.1), logits),
    "plain kl": Case(options(SkewKL, 0.0), skew(0.0), logits),
    "reverse skew": Case(options(ReverseSkewKL, 0.3), reverse_skew(0.3), logits),
    "reverse kl": Case(options(ReverseSkewKL, 0.0), reverse_skew(0.0), logits),
    "classes": Case(options(CorrelationLoss, 1.0, 0.0), over_classes, logits),
    "batch": Case(options(CorrelationLoss, 0.0, 1.0), over_batch, logits),
    "rank": Case(options(CorrelationLoss, 0.0, 0.0, 1.0), over_ranks, logits),
    "correlation": Case(options(CorrelationLoss, 2.0, 0.5, 0.25), all_three, logits),
    "hidden": Case(options(HiddenStateLoss), hidden, logits),
    "hidden fixed": Case(options(HiddenStateLoss, N, WIDE, "fixed"), hidden, wide),
    "hidden learned": Case(options(HiddenStateLoss, N, WIDE, "learned"), hidden, wide),
    "cosine": Case(options(CosineLoss), direction, logits),
    "cosine learned": Case(options(CosineLoss, N, WIDE, "learned"), direction, wide),
    "cross entropy": Case(options(TaskLoss, label_smoothing=0.2), cross_entropy, classes),
    "mse": Case(options(TaskLoss, "mse"), squares, logits),
    "binary": Case(options(TaskLoss, "binary_cross_entropy"), binary, yes_or_no),
}
# Losses that compare like with like are 0 where the student says what the teacher says.
COMPARING = [name for name, case in CASES.items() if case.target is logits and name != "mse"]
