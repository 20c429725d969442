"""The teacher's softened choices: the loss that started distillation.

L = T^2 KL(softmax(t / T) || softmax(z / T))

z, t: logits of student and teacher; T: temperature. T^2 keeps the soft gradient's size when T
changes. Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from torch import Tensor

from opdf_compile.distill.losses.logs import divergence, log_softmax
from opdf_compile.distill.losses.loss import Loss, Reduction
from opdf_compile.errors import InputError


class HintonKD(Loss):
    """KL divergence of softened logits, times the temperature squared.

    Args:
        temperature: T above; larger values show more of the teacher's lesser choices.
        reduction: "mean", "sum" or "none"; see `Loss`.

    Shapes: student and teacher ``(..., classes)``, mask ``(...)``. Logits of -inf are allowed where
    student and teacher both have them.

    Raises:
        InputError: The temperature is not positive; in forward, shapes or dtypes do not fit.
    """

    def __init__(self, temperature: float = 4.0, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        if not 0 < temperature < float("inf"):
            raise InputError(
                f"HintonKD got the temperature {temperature}, wanted a positive number; 4 is usual"
            )
        self.temperature = temperature

    def extra_repr(self) -> str:
        """What print shows."""
        return f"temperature={self.temperature}"

    def _rows(self, student: Tensor, teacher: Tensor, _counted: Tensor | None) -> Tensor:
        target = log_softmax(teacher / self.temperature)
        found = log_softmax(student / self.temperature)
        return self.temperature**2 * divergence(target, found)
