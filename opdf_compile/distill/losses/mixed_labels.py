"""The task on mixed examples: each is a part of two.

    sum over rows of  l L(x, y_i) + (1 - l) L(x, y_j)        x: the answer on the mix of i and j

Source: Zhang et al. 2017 (mixup), arXiv 1710.09412, section 2; Liang et al. 2020 (MixKD), arXiv
2011.00593.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from opdf_compile.distill.losses.loss import over_columns
from opdf_compile.distill.losses.task import TaskLoss
from opdf_compile.distill.losses.weighted import Term, read_output


class MixedLabels(Term):
    """A task loss on answers to mixed examples.

    Args:
        loss: With reduction "none".
        student: The student's output on the mix.
        labels: The column of the examples' own labels.
        partner: The column of j, ``(b,)``.
        share: The column of l, ``(b,)``.
        mask: A column that says which rows count, those of i for i and those of j for j.
    """

    def __init__(
        self,
        loss: TaskLoss,
        student: str,
        labels: str,
        *,
        partner: str,
        share: str,
        mask: str | None = None,
    ) -> None:
        super().__init__(loss, student, labels=labels, mask=mask)
        self._columns = partner, share

    def pieces(
        self,
        student: Tensor | Mapping[str, Any],
        teacher: Tensor | Mapping[str, Any] | None = None,
        batch: Tensor | Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The sum over both labels of all rows, and how many rows the examples' own are."""
        assert self.labels is not None and isinstance(self.loss, TaskLoss)
        answer = read_output(self.student, (student, batch), "student")
        labels = read_output(self.labels, (batch,), "batch")
        partner, share = (read_output(name, (batch,), "batch") for name in self._columns)
        mask = None if self.mask is None else read_output(self.mask, (batch,), "batch")
        own = self.loss(answer, labels, mask=mask)
        other = self.loss(answer, labels[partner], mask=None if mask is None else mask[partner])
        part = over_columns(share.to(own.dtype), own)
        total = (part * own + (1 - part) * other).sum()
        _sum, count = self.loss.pieces(answer.detach(), labels, mask=mask)
        return total, count
