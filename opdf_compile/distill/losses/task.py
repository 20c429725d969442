"""The task itself: labels in place of a teacher."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from opdf_compile.distill.losses.loss import Loss, Reduction
from opdf_compile.errors import InputError

_Kind = Literal["cross_entropy", "mse", "binary_cross_entropy"]
# Torch leaves out -100 unasked; labels that do not count are no longer there when it is called.
NO_LABEL = -(2**62)


class TaskLoss(Loss):
    """The loss that the labels give.

    Args:
        kind: "cross_entropy" (one class of several), "binary_cross_entropy" (each class yes or
            no), or "mse" (numbers).
        label_smoothing: Share of a label that is spread over all classes; of cross entropy alone.
        ignore_index: A label that does not count, as padding has; of cross entropy alone.
        reduction: "mean", "sum" or "none"; see `Loss`.

    Shapes: student ``(..., classes)``, labels ``(...)`` integers for cross entropy, otherwise
    ``(..., classes)``, or ``(...)`` where there is one column; mask ``(...)``. Labels are those of
    the same row: for the next token, shift them by one before.

    Raises:
        InputError: An option is out of range; in forward, shapes, dtypes or labels do not fit.
    """

    def __init__(
        self,
        kind: _Kind = "cross_entropy",
        label_smoothing: float = 0.0,
        *,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        if kind not in get_args(_Kind):
            raise InputError(
                f"TaskLoss got the kind {kind!r}, wanted one of {', '.join(get_args(_Kind))}"
            )
        if not 0 <= label_smoothing < 1 or (label_smoothing and kind != "cross_entropy"):
            raise InputError(
                f"TaskLoss got label_smoothing={label_smoothing} for {kind}, wanted a share from 0 "
                "to below 1, and 0 but for cross_entropy"
            )
        self.kind, self.label_smoothing, self.ignore_index = kind, label_smoothing, ignore_index

    def extra_repr(self) -> str:
        """What print shows."""
        smoothing = f", label_smoothing={self.label_smoothing}" if self.label_smoothing else ""
        return f"{self.kind}{smoothing}"

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        classes = self.kind == "cross_entropy"
        shapes = [student.shape[:-1]] if classes else [student.shape]
        if not classes and student.ndim and student.shape[-1] == 1:
            shapes.append(student.shape[:-1])
        if not student.is_floating_point() or student.ndim == 0 or teacher.shape not in shapes:
            raise InputError(
                f"TaskLoss got {student.dtype} of shape {tuple(student.shape)} from the student "
                f"and labels of shape {tuple(teacher.shape)}, wanted floating-point numbers "
                f"(..., classes) and labels of shape {tuple(shapes[0])} for {self.kind}"
            )
        if classes and (teacher.is_floating_point() or teacher.dtype == torch.bool):
            raise InputError(
                f"TaskLoss got labels of {teacher.dtype}, wanted the numbers of classes, integers; "
                "for numbers as labels use kind='mse'"
            )

    def _left_out(self, teacher: Tensor) -> Tensor | None:
        return teacher != self.ignore_index if self.kind == "cross_entropy" else None

    def _rows(self, student: Tensor, teacher: Tensor, _counted: Tensor | None) -> Tensor:
        if self.kind == "cross_entropy":
            return self._cross_entropy(student, teacher)
        target = teacher.to(student.dtype).reshape(student.shape)
        if self.kind == "mse":
            return (student - target).square().mean(-1)
        return F.binary_cross_entropy_with_logits(student, target, reduction="none").mean(-1)

    def _cross_entropy(self, student: Tensor, teacher: Tensor) -> Tensor:
        try:
            rows = F.cross_entropy(
                student.reshape(-1, student.shape[-1]),
                teacher.reshape(-1).long(),
                label_smoothing=self.label_smoothing,
                ignore_index=NO_LABEL,
                reduction="none",
            )
        except IndexError as error:  # Only on the CPU; a GPU stops with an assertion of its own.
            counted = teacher[teacher != NO_LABEL]
            raise InputError(
                f"TaskLoss got labels from {int(counted.min())} to {int(counted.max())} and "
                f"{student.shape[-1]} classes, wanted labels from 0 to {student.shape[-1] - 1}, or "
                f"{self.ignore_index} for none; number them anew, or give the student more outputs"
            ) from error
        return rows.reshape(teacher.shape)
