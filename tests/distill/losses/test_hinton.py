"""The distillation loss against numpy, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from opdf_compile.distill.losses import HintonKD, TaskLoss, WeightedSum


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _written_out(z: Tensor, t: Tensor, y: Tensor, temperature: float, share: float) -> float:
    student, teacher = z.numpy(), t.numpy()
    hard = -np.log(_softmax(student)[np.arange(len(y)), y.numpy()]).mean()
    p, q = _softmax(teacher / temperature), _softmax(student / temperature)
    soft = (p * np.log(p / q)).sum(1).mean()
    return float((1 - share) * hard + share * temperature**2 * soft)


def both(z: Tensor, t: Tensor, y: Tensor, temperature: float, share: float) -> Tensor:
    """What a student is usually distilled on: labels and teacher."""
    terms = {"soft": (share, HintonKD(temperature)), "hard": (1 - share, TaskLoss())}
    found: Tensor = WeightedSum(terms)(z, t, {"labels": y})
    return found


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.5), (4.0, 0.9), (2.0, 0.0), (3.0, 1.0)])
def test_equals_the_formula(temperature: float, share: float) -> None:
    z, t = torch.randn(7, 5, dtype=torch.float64), 3 * torch.randn(7, 5, dtype=torch.float64)
    y = torch.randint(5, (7,))
    found = both(z, t, y, temperature, share)
    wanted = _written_out(z, t, y, temperature, share)
    assert float(found) == pytest.approx(wanted, rel=1e-12)
    without_square = _written_out(z, t, y, temperature, share) / temperature**2
    if temperature > 1:
        assert float(found) != pytest.approx(without_square, rel=1e-3)


def test_a_student_that_agrees_with_its_teacher_has_no_soft_loss() -> None:
    z, soft = torch.randn(4, 3), HintonKD(4.0)
    assert float(soft(z, z)) == pytest.approx(0.0, abs=1e-6)
    assert float(soft(z, -z)) > 0.1


def test_the_teacher_gets_no_gradient() -> None:
    z, t = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    both(z, t, torch.tensor([0, 1, 2, 0]), 4.0, 0.9).backward()
    assert z.grad is not None
    assert t.grad is None
