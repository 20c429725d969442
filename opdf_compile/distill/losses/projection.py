"""From the student's width to the teacher's."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opdf_compile.errors import InputError

_Kind = Literal["learned", "fixed"]


class Projection(nn.Module):
    """A matrix that turns student features into teacher features.

    It starts orthonormal, and is the same on each machine: to a larger width lengths and angles are
    kept, to a smaller one they are as far as that is possible; equal widths start at the identity.

    Args:
        student_width: Features that come in.
        teacher_width: Features that go out.
        kind: "fixed" stays as it is (a buffer), "learned" is a Parameter: give it to the optimizer.

    Shapes: ``(..., student_width)`` -> ``(..., teacher_width)``, in the dtype of what comes in.

    Raises:
        InputError: A width is not positive.
    """

    weight: Tensor

    def __init__(self, student_width: int, teacher_width: int, kind: _Kind = "learned") -> None:
        super().__init__()
        if kind not in ("learned", "fixed"):
            raise InputError(f"Projection got the kind {kind!r}, wanted learned or fixed")
        if student_width < 1 or teacher_width < 1:
            raise InputError(
                f"Projection got the widths {student_width} and {teacher_width}, wanted positive "
                "numbers: the last axis of the student's and the teacher's hidden states"
            )
        matrix = orthonormal(teacher_width, student_width).to(torch.get_default_dtype())
        if kind == "learned":
            self.weight = nn.Parameter(matrix)
        else:
            self.register_buffer("weight", matrix)
        self.kind = kind

    def extra_repr(self) -> str:
        """What print shows."""
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}, {self.kind}"

    def forward(self, features: Tensor) -> Tensor:
        """Project the last axis."""
        return F.linear(features, self.weight.to(features.dtype))


def orthonormal(rows: int, columns: int) -> Tensor:
    """A float64 matrix whose shorter side is orthonormal; the same for the same sizes.

    A Gaussian matrix of a fixed seed, orthonormalised with the signs that make it unique (positive
    diagonal of R): uniform among such matrices. A square one is the identity.
    """
    if rows == columns:
        return torch.eye(rows, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    size = (max(rows, columns), min(rows, columns))
    q, r = torch.linalg.qr(torch.randn(size, generator=generator, dtype=torch.float64))
    signed: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    # QR gives columns; some optimizers want gradients, which take the weight's layout, in rows.
    return (signed if rows > columns else signed.T).contiguous()
