"""Singular values against numpy's SVD, over the spectra that squaring a matrix makes hard."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest
import torch
from quick import covering
from torch import Tensor

from opdf_compile.tensor import singular_values
from opdf_compile.tensor.singular_values import balanced_factors, singular_frames

EPS = torch.finfo(torch.float64).eps
ROWS, COLS = 90, 60
SINGLE = torch.finfo(torch.float32).eps


def with_spectrum(values: Tensor) -> Tensor:
    """A matrix of 90 x 60 with these singular values, to float64's rounding."""
    generator = torch.Generator().manual_seed(len(values))
    left, _ = torch.linalg.qr(torch.randn(ROWS, COLS, dtype=torch.float64, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(COLS, COLS, dtype=torch.float64, generator=generator))
    return (left[:, : len(values)] * values) @ right[: len(values)]


def falling(decades: float) -> Tensor:
    """Singular values from 1 to 10^-decades, at equal ratios."""
    return torch.logspace(0.0, -decades, COLS, dtype=torch.float64)


NORMAL = torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MATRICES = {
    "random": NORMAL,
    "flat": with_spectrum(torch.ones(COLS, dtype=torch.float64)),
    "pairs": with_spectrum(falling(8).reshape(-1, 2)[:, :1].expand(-1, 2).flatten()),
    "10^4": with_spectrum(falling(4)),
    "10^8": with_spectrum(falling(8)),
    "10^12": with_spectrum(falling(12)),
    "10^20": with_spectrum(falling(20)),
    "a gap": with_spectrum(torch.cat((falling(1)[:30], 1e-10 * falling(1)[30:]))),
    "a gap at t": with_spectrum(torch.cat((falling(6.3)[:40], 1e-12 * falling(1)[40:]))),
    "one large": with_spectrum(torch.cat((torch.ones(1).double(), 1e-6 * falling(1)[1:]))),
    "one small": with_spectrum(torch.cat((falling(1)[1:], torch.tensor([1e-9]).double()))),
    "rank 20": with_spectrum(falling(1)[:20]),
    "rank 20, 10^8": with_spectrum(falling(24)[:20]),
    "zero columns": NORMAL * (torch.arange(COLS) % 3 == 0),
    "zero": torch.zeros(ROWS, COLS, dtype=torch.float64),
    "constant": torch.full((ROWS, COLS), 0.3, dtype=torch.float64),
    "identity": torch.eye(ROWS, COLS, dtype=torch.float64),
    "signs": NORMAL.sign(),
    "bfloat16": NORMAL.bfloat16().double(),
    "bfloat16, 10^8": with_spectrum(falling(8)).bfloat16().double(),
    "10^8, 1e-290": with_spectrum(falling(8)) * 1e-290,
    "10^8, 1e+290": with_spectrum(falling(8)) * 1e290,
    "subnormal": NORMAL * 1e-310,
}


def assert_svd(matrix: Tensor, left: Tensor, values: Tensor, right: Tensor) -> None:
    """The bounds at the top of `singular_values`, with their O( ) written out.

    m eps bounds the rounding of a sum of m terms, m^(1/2) eps is its size as a random walk (Higham,
    Accuracy and Stability of Numerical Algorithms, section 2.8). Angles get the tighter one.
    """
    room = max(matrix.shape)
    oracle = torch.from_numpy(np.linalg.svd(matrix.numpy(), compute_uv=False))
    absolute = room * EPS * float(oracle[0])
    assert float((values - oracle).abs().max()) <= absolute
    assert float(((left * values) @ right - matrix).norm()) <= room * EPS * float(oracle.norm())
    eye = torch.eye(len(values), dtype=torch.float64)
    for found in (left.mT @ left, right @ right.mT):
        assert float((found - eye).abs().max()) <= room**0.5 * SINGLE


def scaled(matrix: Tensor) -> Tensor:
    return singular_values._scale(matrix)[0]


@pytest.mark.parametrize(("name", "wide"), covering(MATRICES, [False, True]))
def test_they_are_those_of_an_svd(name: str, wide: bool) -> None:
    matrix = scaled(MATRICES[name].mT if wide else MATRICES[name])
    assert_svd(matrix, *singular_values._singular_triplets(matrix))


@pytest.mark.parametrize("name", ["10^8", "10^12", "a gap", "one large", "rank 20, 10^8"])
def test_one_round_would_not_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check rejects the plain Gram route, which takes every direction for resolved."""
    monkeypatch.setattr(singular_values, "GRAM_LIMIT", 0.0)
    matrix = scaled(MATRICES[name])
    with pytest.raises(AssertionError):
        assert_svd(matrix, *singular_values._singular_triplets(matrix))


@pytest.mark.parametrize("name", MATRICES)
def test_many_rounds_do_as_well(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round for nearly every singular value: each step is exact, wherever it splits."""
    monkeypatch.setattr(singular_values, "GRAM_LIMIT", 0.9)
    matrix = scaled(MATRICES[name])
    assert_svd(matrix, *singular_values._singular_triplets(matrix))


@pytest.mark.parametrize("name", MATRICES)
def test_the_factors_are_balanced_in_every_direction(name: str) -> None:
    """A^T A = B B^T = S, each entry relative to its own two directions, not to the largest."""
    matrix = MATRICES[name]
    left, right = balanced_factors(matrix)
    root = singular_values._scale(matrix)[1]
    left, right = left / root, right / root
    alive = right.norm(dim=1) > 0
    assert bool((left.norm(dim=0) > 0).all())
    sizes = left.norm(dim=0)
    gram = (left.mT @ left) / (sizes[:, None] * sizes)
    room = max(matrix.shape) ** 0.5 * SINGLE
    assert float((gram - torch.eye(COLS, dtype=torch.float64)).abs().max()) <= room
    ratio = right.norm(dim=1)[alive] / sizes[alive]
    assert float((ratio - 1).abs().max()) <= room if bool(alive.any()) else name == "zero"
    error = (left @ right - scaled(matrix)).norm()
    # What null directions drop, and the rounding of the rest.
    dropped = (COLS**0.5 + 1) * max(matrix.shape) * EPS
    assert float(error) <= dropped * float(scaled(matrix).norm())


def test_frames_are_orthonormal_and_span_what_is_there() -> None:
    left, right = singular_frames(MATRICES["rank 20"], 40)
    assert (left.shape, right.shape) == ((ROWS, 40), (40, COLS))
    eye = torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(left.mT @ left, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(right @ right.mT, eye, rtol=0, atol=1e-12)
    kept = left[:, :20] @ left[:, :20].mT @ MATRICES["rank 20"]
    torch.testing.assert_close(kept, MATRICES["rank 20"], rtol=0, atol=1e-13)


def test_sign_takes_the_first_of_equally_large_entries() -> None:
    left = torch.tensor([[0.1, 0.0], [-1.0, 1.0], [1.0 + 1e-9, -1.0]], dtype=torch.float64)
    assert singular_values._signs(left).tolist() == [-1.0, 1.0]
    plain = torch.tensor([[0.1, 0.5], [-1.0, 1.0], [0.9, -0.9]], dtype=torch.float64)
    assert singular_values._signs(plain).tolist() == [-1.0, 1.0]


def test_a_gram_matrix_in_strips_is_the_lower_triangle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singular_values, "_STRIP", 16)
    found = singular_values._gram(NORMAL)
    torch.testing.assert_close(found.tril(), (NORMAL.mT @ NORMAL).tril())
    assert float(found[0, -1]) == 0.0


def test_the_shape_checker_rejects_a_wrong_rank() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        singular_values._signs(torch.zeros(3))
