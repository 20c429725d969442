"""What all losses share: one value per row, masks, reductions, pieces, and the precision.

A row is everything but the last axis: an example of (b, classes), a token of (b, tokens, classes).
"""

from __future__ import annotations

import contextlib
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from opdf_compile.errors import InputError

Reduction = Literal["mean", "sum", "none"]


class Loss(nn.Module):
    """A loss with one value per row.

    A subclass gives `_rows`. What a mask leaves out has no influence at all: neither on the value
    nor on any gradient, even where it holds NaN.

    Args:
        reduction: "mean" over the rows that count, "sum", or "none" (0 where a row does not count).

    Attributes:
        separable: Whether the sum over a joined batch is the sum of the parts' sums.
    """

    separable = True

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        if reduction not in get_args(Reduction):
            raise InputError(
                f"{type(self).__name__} got the reduction {reduction!r}, wanted one of "
                f"{', '.join(get_args(Reduction))}"
            )
        self.reduction = reduction

    def forward(self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            student: ``(..., n)``, any float dtype.
            teacher: What it is compared with, ``(..., n)``; no gradient flows into it.
            mask: ``(...)`` bool or integer, as many axes as there are before the last, each of
                the same size or 1; 0 leaves a row out.

        Returns:
            A 0-d tensor, or ``(...)`` with reduction "none"; float32, or float64 where an input is.
            The mean over no row at all is 0.

        Raises:
            InputError: Shapes or dtypes do not fit.
        """
        rows, counted = self._counted_rows(student, teacher, mask)
        if self.reduction == "none":
            return rows
        if self.reduction == "sum":
            return rows.sum()
        return rows.sum() / _count(rows, counted).clamp_min(1)

    def pieces(
        self, student: Tensor, teacher: Tensor, *, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The sum over the rows that count, and how many they are, both 0-d.

        Over several batches or processes the exact mean is the sum of sums over the sum of counts.
        Arguments and errors are those of `forward`; the reduction has no part in it.
        """
        rows, counted = self._counted_rows(student, teacher, mask)
        return rows.sum(), _count(rows, counted)

    def _rows(self, student: Tensor, teacher: Tensor, counted: Tensor | None) -> Tensor:
        """One value per row, of inputs in full precision that are 0 where a row is left out."""
        raise NotImplementedError

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        """Raise where two inputs do not fit each other."""
        check_floats(self, student, teacher)
        if student.shape != teacher.shape:
            raise InputError(
                f"{type(self).__name__} got {tuple(student.shape)} from the student and "
                f"{tuple(teacher.shape)} from the teacher, wanted equal shapes (..., classes); "
                "give the student as many classes as the teacher, or map one to the other first"
            )

    def _left_out(self, _teacher: Tensor) -> Tensor | None:
        """Rows that count by what the target itself says, or None for all."""
        return None

    def _counted_rows(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        self._check(student, teacher)
        counted = both(counted_rows(self, student, mask), self._left_out(teacher))
        with full_precision(student):
            x, target = widened(student, teacher.detach())
            if counted is None:
                return self._rows(x, target, None), None
            x = x.masked_fill(~over_columns(counted, x), 0)
            target = target.masked_fill(~over_columns(counted, target), 0)
            return self._rows(x, target, counted).masked_fill(~counted, 0), counted


def full_precision(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """A region in which autocast casts nothing on the tensor's device."""
    kind = like.device.type
    if not torch.amp.is_autocast_available(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def widened(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype, float32 or wider; integers (labels) stay as they are."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    if not teacher.is_floating_point():
        return student.to(dtype), teacher
    dtype = torch.promote_types(dtype, teacher.dtype)
    return student.to(dtype), teacher.to(dtype)


def check_floats(loss: nn.Module, student: Tensor, teacher: Tensor) -> None:
    """Raise where one of them holds no real floating-point numbers, or has no last axis."""
    for side, tensor in (("student", student), ("teacher", teacher)):
        if not tensor.is_floating_point() or tensor.ndim == 0:
            raise InputError(
                f"{type(loss).__name__} got {tensor.dtype} of shape {tuple(tensor.shape)} from the "
                f"{side}, wanted floating-point numbers of shape (..., n); pass its outputs as "
                "they come, not choices or means made of them"
            )


def counted_rows(loss: nn.Module, student: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask as bool, one value per row."""
    if mask is None:
        return None
    leading = student.shape[:-1]
    if mask.is_floating_point() or mask.is_complex():
        raise InputError(
            f"{type(loss).__name__} got a mask of {mask.dtype}, wanted bool or integers (0 leaves "
            "a row out); pass mask.bool(), or mask == 0 if it is one that is added to scores"
        )
    fits = mask.ndim == len(leading) and all(
        size in (1, wanted) for size, wanted in zip(mask.shape, leading, strict=True)
    )
    if not fits:
        raise InputError(
            f"{type(loss).__name__} got a mask of shape {tuple(mask.shape)}, wanted "
            f"{tuple(leading)}, one value per row, or 1 in place of a size; add axes with "
            "mask[:, None], or take the part of it that belongs to these rows"
        )
    return (mask != 0).expand(leading)


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Rows that count in both; None counts all."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


def over_columns(counted: Tensor, like: Tensor) -> Tensor:
    """One value per row, as one that broadcasts over the axes that come after."""
    return counted.reshape(counted.shape + (1,) * (like.ndim - counted.ndim))


def _count(rows: Tensor, counted: Tensor | None) -> Tensor:
    if counted is None:
        return torch.tensor(rows.numel(), dtype=rows.dtype, device=rows.device)
    return counted.sum().to(rows.dtype)
