"""Correlation of predictions: over the classes, over the batch, and of the classes' ranks.

classes: 1 - cos(p_i, q_i), the row i of teacher's and student's probabilities
batch:   1 - cos(p^c, q^c), the column c of them, averaged over c
rank:    1 - r(R(t_i), R(z_i)), r Pearson's correlation, R soft ranks

R(x)_i = sum_j sigmoid((x_i - x_j) / (s std(x))), which is the rank of x_i among all as s -> 0; so
the third part is Spearman's distance made smooth. Source: Kim, Ham, Cho, Kim 2023 (R2KD), arXiv
2311.13934. Two things differ, on purpose. Its rank term is made of sorted positions, through which
no gradient flows. And it takes absolute values of correlations: those of probabilities are positive
anyway, and of ranks it would call the reversed order perfect.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opdf_compile.distill.losses.logs import FLOOR, log_softmax
from opdf_compile.distill.losses.loss import Loss, Reduction, over_columns
from opdf_compile.errors import InputError

MOST_RANKED = 1024


class CorrelationLoss(Loss):
    """Distance of correlation between two tables of predictions.

    Args:
        classes: Weight of the part over classes.
        batch: Weight of the part over the batch (all rows that count); one row alone gives 0.
        rank: Weight of the part over ranks. It compares each pair of classes: classes squared
            numbers for each row, so at most 1,024 classes.
        temperature: Of the softmax before the first two parts; ranks do not depend on it.
        sharpness: s above. At 0.5 all pairs of classes that are in the wrong order pull; near 0
            the distance is Spearman's, with gradients at near ties only.
        reduction: "mean", "sum" or "none"; see `Loss`. The batch part, one number, is added to
            each row.

    Shapes: student and teacher ``(..., classes)``, mask ``(...)``. Equal predictions give 0.

    Raises:
        InputError: A weight or option is out of range; in forward, shapes or dtypes do not fit.
    """

    def __init__(
        self,
        classes: float = 1.0,
        batch: float = 1.0,
        rank: float = 0.0,
        *,
        temperature: float = 4.0,
        sharpness: float = 0.5,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        weights = {"classes": classes, "batch": batch, "rank": rank}
        wrong = [f"{name}={value}" for name, value in weights.items() if not 0 <= value < 1e30]
        if wrong or not any(weights.values()):
            raise InputError(
                f"CorrelationLoss got the weights {', '.join(wrong) or 'all 0'}, wanted numbers "
                "from 0 on, at least one above it; classes=1, batch=1 is usual"
            )
        if not (temperature > 0 and sharpness > 0):
            raise InputError(
                f"CorrelationLoss got temperature={temperature} and sharpness={sharpness}, wanted "
                "positive numbers; 4 and 0.5 are usual"
            )
        self.classes, self.batch, self.rank = classes, batch, rank
        self.temperature, self.sharpness = temperature, sharpness

    @property
    def separable(self) -> bool:  # type: ignore[override]
        """False with a batch part, which couples the rows: each process has its own then."""
        return self.batch == 0

    def extra_repr(self) -> str:
        """What print shows."""
        return f"classes={self.classes}, batch={self.batch}, rank={self.rank}"

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        super()._check(student, teacher)
        if self.rank and student.shape[-1] > MOST_RANKED:
            raise InputError(
                f"CorrelationLoss got {student.shape[-1]} classes, wanted at most {MOST_RANKED} "
                "for its rank part, which compares each pair of them; set rank=0, or pass the "
                "columns of the classes that matter"
            )

    def _rows(self, student: Tensor, teacher: Tensor, counted: Tensor | None) -> Tensor:
        rows = student.new_zeros(student.shape[:-1])
        p, q = (log_softmax(x / self.temperature) for x in (teacher, student))
        if self.classes:
            rows = rows + self.classes * (1 - _cosine(p, q, -1))
        if self.rank:
            rows = rows + self.rank * self._rank_distance(student, teacher)
        if self.batch:
            if counted is not None:
                left_out = ~over_columns(counted, p)
                p, q = (x.masked_fill(left_out, 1e4 * FLOOR) for x in (p, q))
            p, q = (x.reshape(-1, x.shape[-1]) for x in (p, q))
            if len(p):
                rows = rows + self.batch * (1 - _cosine(p, q, 0)).mean()
        return rows

    def _rank_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        ranks = [soft_ranks(x, self.sharpness) for x in (student, teacher)]
        x, y = (r - r.mean(-1, keepdim=True) for r in ranks)
        # Ranks of n classes are of size n; only those of equal logits are all the same.
        norms = (x.square().sum(-1) * y.square().sum(-1)).clamp_min(1e-12).sqrt()
        return 1 - (x * y).sum(-1) / norms


def soft_ranks(values: Tensor, sharpness: float) -> Tensor:
    """Differentiable ranks along the last axis, from about 0.5 to n - 0.5.

    Args:
        values: ``(..., n)``; shifts and positive factors do not change the result.
        sharpness: Differences of this many standard deviations are told apart.
    """
    centred = values - values.mean(-1, keepdim=True)
    # The constant keeps the derivative of the root finite where all values are equal.
    spread = (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    scaled = centred / (spread * sharpness)
    return torch.sigmoid(scaled.unsqueeze(-1) - scaled.unsqueeze(-2)).sum(-1)


def _cosine(p: Tensor, q: Tensor, axis: int) -> Tensor:
    """Of the exponentials of two tables, along an axis.

    A cosine does not depend on scale, so each vector is divided by its largest element first:
    a class of probability 1e-30 everywhere is compared as well as any other.
    """
    largest = (x.detach().amax(axis, keepdim=True).clamp_min(1e2 * FLOOR) for x in (p, q))
    a, b = ((x - top).exp() for x, top in zip((p, q), largest, strict=True))
    # Each is at least 1, but where no row counts.
    norms = (a.square().sum(axis).clamp_min(0.5) * b.square().sum(axis).clamp_min(0.5)).sqrt()
    return (a * b).sum(axis) / norms
