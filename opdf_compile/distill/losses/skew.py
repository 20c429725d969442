"""Skewed divergences: finite, with bounded gradients, where a plain one is not.

SKL  = KL(p || a p + (1 - a) q)
SRKL = KL(q || a q + (1 - a) p)

p, q: softmax of the teacher's and the student's logits; a: the skew. Source: Ko, Kim, Chen, Yun
2024 (DistiLLM), arXiv 2402.03898, section 3.1. DistiLLM-2 (arXiv 2503.07067, and its authors' code)
takes SKL on the teacher's responses and SRKL on the student's, there with a mixture that is held
fixed: no gradient flows through the q inside it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opdf_compile.distill.losses.logs import divergence, log_softmax
from opdf_compile.distill.losses.loss import Loss, Reduction
from opdf_compile.errors import InputError


class _Skewed(Loss):
    def __init__(self, alpha: float = 0.1, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        if not 0 <= alpha < 1:
            raise InputError(
                f"{type(self).__name__} got alpha {alpha}, wanted a number from 0 (the plain "
                "divergence) to below 1; 0.1 is usual"
            )
        self.alpha = alpha

    def extra_repr(self) -> str:
        """What print shows."""
        return f"alpha={self.alpha}"

    def _mixed(self, logs: Tensor, others: Tensor) -> Tensor:
        """The mixture, of logarithms and as one: what is below float32's smallest counts."""
        if self.alpha == 0:
            return others
        return torch.logaddexp(logs + math.log(self.alpha), others + math.log1p(-self.alpha))


class SkewKL(_Skewed):
    """KL from the teacher to a mixture of teacher and student.

    Args:
        alpha: The teacher's share of the mixture, 0 <= alpha < 1; 0 is the plain forward KL.
        reduction: "mean", "sum" or "none"; see `Loss`.

    Shapes: student and teacher ``(..., classes)``, mask ``(...)``. Each row is at most -log(alpha).

    Raises:
        InputError: alpha is out of range; in forward, shapes or dtypes do not fit.
    """

    def _rows(self, student: Tensor, teacher: Tensor, _counted: Tensor | None) -> Tensor:
        logs = log_softmax(teacher)
        return divergence(logs, self._mixed(logs, log_softmax(student)))


class ReverseSkewKL(_Skewed):
    """KL from the student to a mixture of student and teacher.

    Args:
        alpha: The student's share of the mixture, 0 <= alpha < 1; 0 is the plain reverse KL.
        detach: Let no gradient flow through the mixture, as DistiLLM-2 does.
        reduction: "mean", "sum" or "none"; see `Loss`.

    Shapes: student and teacher ``(..., classes)``, mask ``(...)``. Each row is at most -log(alpha).

    Raises:
        InputError: alpha is out of range; in forward, shapes or dtypes do not fit.
    """

    def __init__(
        self, alpha: float = 0.1, *, detach: bool = False, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(alpha, reduction=reduction)
        self.detach = detach

    def _rows(self, student: Tensor, teacher: Tensor, _counted: Tensor | None) -> Tensor:
        logs = log_softmax(student)
        inside = logs.detach() if self.detach else logs
        return divergence(logs, self._mixed(inside, log_softmax(teacher)))
