"""Projections, and what is special in the losses of hidden states."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from opdf_compile.distill.losses import CosineLoss, HiddenStateLoss, Projection
from opdf_compile.errors import InputError


@pytest.mark.parametrize(("student", "teacher"), [(3, 7), (7, 3), (5, 5)])
def test_a_projection_starts_orthonormal(student: int, teacher: int) -> None:
    weight = Projection(student, teacher, "fixed").double().weight
    gram = weight @ weight.T if teacher < student else weight.T @ weight
    # Rounded to float32 once.
    assert torch.allclose(gram, torch.eye(min(student, teacher)).double(), atol=1e-6)
    x = torch.randn(4, student, dtype=torch.float64)
    if teacher >= student:
        assert torch.allclose((x @ weight.T).norm(dim=1), x.norm(dim=1), rtol=1e-5)
    assert not torch.allclose(gram, 1.01 * torch.eye(len(gram)).double(), atol=1e-6)


def test_it_is_the_same_whatever_the_seed() -> None:
    torch.manual_seed(1)
    first, state = Projection(4, 6, "fixed"), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first.weight, Projection(4, 6, "learned").weight)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are untouched"


def test_only_the_learned_one_is_trained() -> None:
    learned, fixed = HiddenStateLoss(4, 6, "learned"), HiddenStateLoss(4, 6, "fixed")
    assert [n for n, _p in learned.named_parameters()] == ["projection.weight"]
    assert not list(fixed.parameters())
    assert list(fixed.state_dict()) == ["projection.weight"]


def test_equal_widths_start_at_the_identity() -> None:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(HiddenStateLoss(4, 4, "learned")(x, y), HiddenStateLoss()(x, y))
    assert torch.isclose(HiddenStateLoss()(x, y), F.mse_loss(x, y))


def test_a_learned_projection_recovers_what_a_student_knows() -> None:
    x = torch.randn(64, 4, dtype=torch.float64)
    y = x @ torch.randn(4, 6, dtype=torch.float64)
    loss = HiddenStateLoss(4, 6, "learned").double()
    before = loss(x, y).item()
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(x, y)
        value.backward()
        return value

    optimizer.step(closure)
    assert loss(x, y).item() < 1e-9 * before


def test_cosine_does_not_see_lengths() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    assert CosineLoss()(7 * x, x).item() == pytest.approx(0, abs=1e-12)
    assert CosineLoss()(-x, x).item() == pytest.approx(2, abs=1e-12)
    assert CosineLoss()(torch.zeros(2, 3), torch.ones(2, 3)).item() == 1


@pytest.mark.parametrize("loss", [HiddenStateLoss, CosineLoss])
def test_errors_say_what_is_wrong(loss: type[HiddenStateLoss]) -> None:
    name = loss.__name__
    with pytest.raises(InputError, match=f"{name}.*'fixed' without both widths"):
        loss(4, projection="fixed")
    with pytest.raises(InputError, match=f"{name}.*width 4 .* 6 from .*; give projection="):
        loss()(torch.zeros(3, 4), torch.zeros(3, 6))
    with pytest.raises(InputError, match="5 from the student and 6 from the teacher, wanted 4"):
        loss(4, 6, "learned")(torch.zeros(3, 5), torch.zeros(3, 6))
    with pytest.raises(InputError, match="same sizes before the last axis"):
        loss()(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(InputError, match="learned or fixed"):
        loss(4, 6, "random")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="wanted positive"):
        Projection(0, 4)
