"""Hidden states: the student's, projected to the teacher's width, should be the teacher's."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from opdf_compile.distill.losses.loss import Loss, Reduction, check_floats
from opdf_compile.distill.losses.projection import Projection
from opdf_compile.errors import InputError


class _Projected(Loss):
    def __init__(
        self,
        student_width: int | None = None,
        teacher_width: int | None = None,
        projection: Literal["learned", "fixed"] | None = None,
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.projection: Projection | None = None
        if projection is None:
            return
        if student_width is None or teacher_width is None:
            raise InputError(
                f"{type(self).__name__} got the projection {projection!r} without both widths, "
                "wanted student_width= and teacher_width=, the last axes of what is compared"
            )
        self.projection = Projection(student_width, teacher_width, projection)

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        check_floats(self, student, teacher)
        widths = student.shape[-1], teacher.shape[-1]
        wanted = (widths[1], widths[1])
        remedy = "give projection= with student_width= and teacher_width="
        if self.projection is not None:
            wanted = self.projection.weight.shape[1], self.projection.weight.shape[0]
            remedy = "make it with the widths of these states"
        if widths != wanted:
            raise InputError(
                f"{type(self).__name__} got states of width {widths[0]} from the student and "
                f"{widths[1]} from the teacher, wanted {wanted[0]} and {wanted[1]}; {remedy}"
            )
        if student.shape[:-1] != teacher.shape[:-1]:
            raise InputError(
                f"{type(self).__name__} got states of shape {tuple(student.shape)} from the "
                f"student and {tuple(teacher.shape)} from the teacher, wanted the same sizes "
                "before the last axis; compare layers of equal length, features last"
            )

    def _projected(self, student: Tensor) -> Tensor:
        if self.projection is None:
            return student
        projected: Tensor = self.projection(student)
        return projected


class HiddenStateLoss(_Projected):
    """Mean squared difference of hidden states, over the features.

    Args:
        student_width: The student's last axis; needed with a projection.
        teacher_width: The teacher's.
        projection: "learned" (its weight belongs into the optimizer), "fixed" (orthonormal), or
            None for equal widths.
        reduction: "mean", "sum" or "none"; see `Loss`.

    Shapes: student ``(..., student_width)``, teacher ``(..., teacher_width)``, mask ``(...)``.
    Feature maps (b, channels, h, w) are given as ``x.movedim(1, -1)``.

    Raises:
        InputError: A width is missing; in forward, shapes or dtypes do not fit.
    """

    def _rows(self, student: Tensor, teacher: Tensor, _counted: Tensor | None) -> Tensor:
        return (self._projected(student) - teacher).square().mean(-1)


class CosineLoss(_Projected):
    """1 - cos of the angle between hidden states, as between sentence embeddings.

    Args:
        student_width: The student's last axis; needed with a projection.
        teacher_width: The teacher's.
        projection: "learned" (its weight belongs into the optimizer), "fixed" (orthonormal), or
            None for equal widths.
        reduction: "mean", "sum" or "none"; see `Loss`.

    Shapes: student ``(..., student_width)``, teacher ``(..., teacher_width)``, mask ``(...)``.
    A row of zeros has no direction, and counts as at a right angle to all.

    Raises:
        InputError: A width is missing; in forward, shapes or dtypes do not fit.
    """

    def _rows(self, student: Tensor, teacher: Tensor, _counted: Tensor | None) -> Tensor:
        return 1 - F.cosine_similarity(self._projected(student), teacher, dim=-1)
