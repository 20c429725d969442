"""What holds for every loss: the formula, gradients, masks, reductions, precision, the teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_cases import CASES, COMPARING, Case
from torch import Tensor, nn

from opdf_compile.distill import losses
from opdf_compile.distill.losses import Loss

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
MASK = torch.tensor([[True, True, False, True], [False] * 4, [True, False, False, True]])


def test_every_loss_has_a_case() -> None:
    named = [getattr(losses, name) for name in vars(losses)["__all__"]]
    public = [value for value in named if isinstance(value, type)]
    known = {kind for kind in public if issubclass(kind, losses.Loss)} - {losses.Loss}
    assert known == {type(case.make()) for case in CASES.values()}


def oracle(case: Case, loss: Loss, student: Tensor, target: Tensor) -> np.ndarray:
    values = student.detach().double().numpy()
    given = target.numpy() if not target.is_floating_point() else target.double().numpy()
    return case.rows(values, given, loss)


@every_case
@pytest.mark.parametrize("leading", [(7,), (3, 4)])
def test_it_is_the_formula(case: Case, leading: tuple[int, ...]) -> None:
    loss = case.make(reduction="none").double()
    student, target = case.inputs(*leading)
    rows = oracle(case, loss, student, target)
    found = loss(student, target).detach().numpy()
    # A few hundred roundings of numbers below ten.
    assert np.allclose(found, rows, rtol=1e-11, atol=1e-13)
    # The wrong answer: rows of a student that is off by one in a hundred.
    other = loss(student + 0.01 * torch.randn_like(student), target).detach().numpy()
    assert not np.allclose(other, rows, rtol=1e-4, atol=1e-13)


@every_case
def test_reductions_and_pieces_agree(case: Case) -> None:
    student, target = case.inputs(3, 4)
    none, mean, total = (case.make(reduction=r).double() for r in ("none", "mean", "sum"))
    for mask in (None, MASK):
        rows = none(student, target, mask=mask)
        count = 12 if mask is None else int(MASK.sum())
        assert rows.shape == (3, 4)
        assert torch.isclose(total(student, target, mask=mask), rows.sum())
        assert torch.isclose(mean(student, target, mask=mask), rows.sum() / count)
        summed, counted = mean.pieces(student, target, mask=mask)
        assert torch.isclose(summed, rows.sum())
        assert counted.shape == () and float(counted) == count
    assert torch.all(none(student, target, mask=MASK)[~MASK] == 0)


@every_case
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    loss = case.make().double()
    student, target = case.inputs(3, 2)
    student.requires_grad_(True)
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    assert torch.autograd.gradcheck(lambda z: loss(z, target, mask=mask), (student,))
    for parameter in loss.parameters():

        def as_function(weight: Tensor) -> Tensor:
            return torch.func.functional_call(
                loss, {"projection.weight": weight}, (student.detach(), target)
            )

        assert torch.autograd.gradcheck(as_function, (parameter,))


@every_case
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_masked_row_is_as_good_as_dropped(case: Case, poison: float) -> None:
    loss = case.make().double()
    student, target = case.inputs(3, 4)
    poisoned = student.masked_fill(~MASK[..., None], poison).requires_grad_(True)
    if target.is_floating_point():
        target = target.masked_fill(~MASK[..., None], poison)
    kept = student[MASK].requires_grad_(True)
    dropped = loss(kept, target[MASK])
    dropped.backward()
    weights = [w.grad.clone() for w in loss.parameters() if w.grad is not None]
    loss.zero_grad()
    masked = loss(poisoned, target, mask=MASK)
    masked.backward()
    assert torch.isclose(masked, dropped, rtol=1e-12)
    assert poisoned.grad is not None and kept.grad is not None
    assert torch.allclose(poisoned.grad[MASK], kept.grad, rtol=1e-10, atol=1e-14)
    assert torch.all(poisoned.grad[~MASK] == 0)
    for parameter, before in zip(loss.parameters(), weights, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, before, rtol=1e-10, atol=1e-14)
    # The wrong answer: the mask does something.
    assert not torch.isclose(loss(student, case.inputs(3, 4)[1]), masked, rtol=1e-6)


@every_case
def test_a_mask_may_be_integers_and_have_ones_for_sizes(case: Case) -> None:
    loss = case.make().double()
    student, target = case.inputs(3, 4)
    column = torch.tensor([[1], [0], [1]])
    full = column.bool().expand(3, 4)
    found, same = loss(student, target, mask=column), loss(student, target, mask=full)
    assert torch.equal(found, same)


@every_case
def test_no_row_at_all_gives_zero_and_no_gradient(case: Case) -> None:
    loss = case.make().double()
    student, target = case.inputs(3, 4)
    student.requires_grad_(True)
    value = loss(student, target, mask=torch.zeros(3, 4, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert student.grad is not None and torch.all(student.grad == 0)
    empty = loss(student[:0], target[:0])
    assert empty.item() == 0


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    loss = case.make()
    student, target = case.inputs(3, 4, dtype=dtype)
    wide = target.float() if target.is_floating_point() else target
    plain = loss(student.float(), wide)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(student, target)
    assert found.dtype == torch.float32
    assert torch.equal(found, plain)


@every_case
def test_half_precision_itself_would_be_seen(case: Case) -> None:
    """The control of the test above: the same formula, in bfloat16."""
    loss = case.make()
    student, target = case.inputs(3, 4, dtype=torch.bfloat16)
    wide = target.float() if target.is_floating_point() else target
    narrow = loss._rows(student, target, None)
    assert not torch.equal(narrow.float(), loss._rows(student.float(), wide, None))


@every_case
def test_float32_is_as_good_as_it_can_be(case: Case) -> None:
    loss = case.make()
    student, target = case.inputs(3, 4, dtype=torch.float32)
    rows = oracle(case, loss, student, target)
    # Forty roundings of float32, and of numbers near one that are subtracted from one.
    assert loss(student, target).item() == pytest.approx(rows.mean(), rel=40 * 2**-23, abs=1e-6)


@every_case
def test_the_teacher_gets_no_gradient(case: Case) -> None:
    loss = case.make().double()
    student, target = case.inputs(4)
    if target.is_floating_point():
        target.requires_grad_(True)
    student.requires_grad_(True)
    loss(student, target).backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert target.grad is None


@pytest.mark.parametrize("name", COMPARING)
def test_agreement_is_the_least(name: str) -> None:
    loss = CASES[name].make().double()
    student, target = CASES[name].inputs(6)
    assert loss(target, target).item() == pytest.approx(0, abs=1e-12)
    assert loss(student, target).item() > 1e-3
    # A student that follows the gradient gets there.
    free = nn.Parameter(student.clone())
    optimizer = torch.optim.Adam([free], lr=0.15)
    for _ in range(60):
        optimizer.zero_grad()
        loss(free, target).backward()
        optimizer.step()
    assert loss(free, target).item() < 0.1 * loss(student, target).item()


@every_case
def test_it_prints_what_it_is(case: Case) -> None:
    loss = case.make()
    assert str(loss).startswith(type(loss).__name__)
