"""Corners of an orthogonal cosine matrix, entry by entry and as a frame."""

from __future__ import annotations

import math

import pytest
import torch

from opdf_compile.tensor import cosine_frame

LIKE = torch.empty(0, dtype=torch.float64)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (5, 3), (4, 4), (1, 7), (1, 1)])
def test_the_shorter_side_is_orthonormal(rows: int, columns: int) -> None:
    frame = cosine_frame(rows, columns, LIKE)
    assert frame.shape == (rows, columns)
    gram = frame @ frame.mT if rows <= columns else frame.mT @ frame
    torch.testing.assert_close(gram, torch.eye(len(gram)).double(), rtol=0, atol=1e-14)
    size = max(rows, columns)
    for i, j in ((0, 0), (rows - 1, columns - 1)):
        wanted = math.sqrt(2 / size) * math.cos(math.pi * (i + 0.5) * (j + 0.5) / size)
        assert float(frame[i, j]) == pytest.approx(wanted, rel=1e-14)


def test_no_two_rows_or_columns_are_equal() -> None:
    frame = cosine_frame(9, 6, LIKE)
    for matrix in (frame, frame.mT):
        assert len(torch.unique(matrix.round(decimals=9), dim=0)) == len(matrix)
