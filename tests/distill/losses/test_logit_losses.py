"""What is special in the losses of logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from scipy.special import softmax
from torch import Tensor

from opdf_compile.distill.losses import (
    CorrelationLoss,
    HintonKD,
    Loss,
    ReverseSkewKL,
    SkewKL,
    TaskLoss,
)
from opdf_compile.distill.losses.correlation import soft_ranks
from opdf_compile.errors import InputError


def two(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape, dtype=torch.float64), 2 * torch.randn(*shape, dtype=torch.float64)


def test_hinton_is_torchs_own_divergence() -> None:
    z, t = two(6, 5)
    own = F.kl_div(F.log_softmax(z / 4, 1), F.softmax(t / 4, 1), reduction="batchmean") * 16
    assert torch.isclose(HintonKD(4.0)(z, t), own, rtol=1e-12)


def test_the_soft_gradient_keeps_its_size() -> None:
    """T^2: from T = 20 on the gradient is (z - t) / classes of centred logits."""
    z, t = two(4, 3)
    z.requires_grad_(True)
    HintonKD(1e4, reduction="sum")(z, t).backward()
    centred = (z - z.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
    assert z.grad is not None
    assert torch.allclose(z.grad, centred.detach() / 3, atol=1e-3)


@pytest.mark.parametrize("loss", [SkewKL(0.1), ReverseSkewKL(0.1)])
def test_skewed_divergences_are_bounded(loss: Loss) -> None:
    z = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    t = torch.tensor([[-1e4, 1e4, 0.0]])
    value = loss(z, t)
    value.backward()
    assert value.item() == pytest.approx(-math.log(0.1), rel=1e-5)
    assert z.grad is not None and torch.isfinite(z.grad).all()


def test_a_detached_mixture_is_held_fixed_in_the_gradient() -> None:
    """Central differences of KL(q || m) where m stays what it was; the value is the same."""
    z, t = two(3, 5)
    z.requires_grad_(True)
    value = ReverseSkewKL(0.1, detach=True, reduction="sum")(z, t)
    assert torch.equal(value, ReverseSkewKL(0.1, reduction="sum")(z, t))
    (found,) = torch.autograd.grad(value, z)
    student, teacher = z.detach().numpy(), t.numpy()
    fixed = np.log(0.1 * softmax(student, -1) + 0.9 * softmax(teacher, -1))

    def moved(place: tuple[int, ...], by: float) -> float:
        shifted = student.copy()
        shifted[place] += by
        q = softmax(shifted, -1)
        return float((q * (np.log(q) - fixed)).sum())

    step = 1e-5
    wanted = np.array(
        [(moved(at, step) - moved(at, -step)) / (2 * step) for at in np.ndindex(student.shape)]
    )
    np.testing.assert_allclose(found.numpy().ravel(), wanted, atol=1e-9)
    (whole,) = torch.autograd.grad(ReverseSkewKL(0.1, reduction="sum")(z, t), z)
    assert not torch.allclose(whole, found, rtol=1e-3)


def test_the_direction_of_the_skew() -> None:
    """A student that spreads: forward asks it to cover the teacher, reverse to leave the rest."""
    sharp, flat = torch.tensor([[9.0, 0.0, 0.0]]), torch.zeros(1, 3)
    forward, reverse = SkewKL(0.0)(flat, sharp), ReverseSkewKL(0.0)(flat, sharp)
    assert forward.item() == pytest.approx(math.log(3), rel=1e-2)
    assert reverse.item() > 4


@pytest.mark.parametrize(
    "loss", [HintonKD(), SkewKL(), SkewKL(0.0), ReverseSkewKL(), CorrelationLoss()], ids=str
)
def test_impossible_classes(loss: Loss) -> None:
    """Classes with the logit -inf in both are as good as not there."""
    z, t = two(4, 5)
    blocked = torch.tensor([False, True, False, False, True])
    masked = z.masked_fill(blocked, -torch.inf).requires_grad_(True)
    value = loss(masked, t.masked_fill(blocked, -torch.inf))
    value.backward()
    without = loss(z[:, ~blocked], t[:, ~blocked])
    if isinstance(loss, CorrelationLoss):
        # Averaged over five columns, two of which agree.
        classes = CorrelationLoss(1.0, 0.0)(z[:, ~blocked], t[:, ~blocked])
        without = classes + 3 / 5 * (without - classes)
    assert torch.isclose(value, without, rtol=1e-12)
    assert masked.grad is not None and torch.isfinite(masked.grad).all()
    assert torch.all(masked.grad[:, blocked] == 0)


def test_probabilities_below_the_smallest_float_count() -> None:
    """float32 has nothing below 1e-45; logarithms have."""
    z, t = torch.tensor([[0.0, -300.0]]), torch.tensor([[0.0, -200.0]])
    exact = SkewKL(0.0)(z.double(), t.double())
    assert torch.isclose(SkewKL(0.0)(z, t).double(), exact, atol=1e-30)
    batch = CorrelationLoss(0.0, 1.0, temperature=1.0)
    tiny = torch.tensor([[0.0, -150.0], [0.0, -151.0]])
    other = torch.tensor([[0.0, -151.0], [0.0, -150.0]])
    assert torch.isclose(
        batch(tiny, other).double(), batch(tiny.double(), other.double()), rtol=1e-5
    )
    assert batch(tiny, other).item() > 0.1


def test_sharp_soft_ranks_are_ranks() -> None:
    x = torch.randn(3, 9, dtype=torch.float64)
    exact = scipy.stats.rankdata(x.numpy(), axis=-1) - 0.5
    assert np.allclose(soft_ranks(x, 1e-4).numpy(), exact, atol=1e-6)
    assert not np.allclose(soft_ranks(x, 1.0).numpy(), exact, atol=0.1)


def test_the_rank_part_nears_spearmans() -> None:
    z, t = two(5, 12)
    loss = CorrelationLoss(0, 0, 1.0, sharpness=1e-4, reduction="none")
    exact = [
        1 - scipy.stats.spearmanr(a, b).statistic for a, b in zip(z.numpy(), t.numpy(), strict=True)
    ]
    assert np.allclose(loss(z, t).numpy(), exact, atol=1e-6)


def test_a_reversed_order_is_the_worst() -> None:
    """With absolute values of correlations it would be the best."""
    t = torch.randn(4, 7, dtype=torch.float64)
    rank = CorrelationLoss(0, 0, 1.0)
    assert rank(3 * t + 1, t).item() == pytest.approx(0, abs=1e-9)
    assert rank(-t, t).item() == pytest.approx(2, abs=1e-9)


def test_equal_logits_have_ranks_too() -> None:
    z = torch.zeros(2, 4, requires_grad=True)
    CorrelationLoss(1, 1, 1)(z, torch.randn(2, 4)).backward()
    assert z.grad is not None and torch.isfinite(z.grad).all()


def test_one_row_has_no_correlation_over_the_batch() -> None:
    z, t = two(1, 5)
    assert CorrelationLoss(0, 1)(z, t).item() == pytest.approx(0, abs=1e-12)
    assert not CorrelationLoss(0, 1).separable
    assert CorrelationLoss(1, 0).separable and HintonKD().separable


def test_cross_entropy_is_torchs_own() -> None:
    z, y = torch.randn(3, 4, 5, dtype=torch.float64), torch.randint(5, (3, 4))
    y[0, 1] = y[2, 3] = -100
    for smoothing in (0.0, 0.1):
        own = F.cross_entropy(z.transpose(1, 2), y, label_smoothing=smoothing)
        assert torch.isclose(TaskLoss(label_smoothing=smoothing)(z, y), own, rtol=1e-12)
    total, count = TaskLoss().pieces(z, y, mask=torch.ones(3, 4, dtype=torch.bool))
    assert count.item() == 10 and torch.isclose(total / count, TaskLoss()(z, y))
    # The wrong answer: with another label for padding those two count.
    with pytest.raises(InputError, match="labels from -100 to 4 and 5 classes"):
        TaskLoss(ignore_index=-1)(z, y)


def test_one_column_of_numbers() -> None:
    z, y = torch.randn(6, 1), torch.randn(6)
    assert torch.isclose(TaskLoss("mse")(z, y), F.mse_loss(z[:, 0], y))
    assert torch.isclose(TaskLoss("mse")(z, y[:, None]), F.mse_loss(z[:, 0], y))


MESSAGES = {
    "classes": (lambda: HintonKD()(*two(3, 4)[:1], two(3, 5)[1]), r"\(3, 4\).*\(3, 5\)"),
    "broadcast": (lambda: HintonKD()(torch.zeros(3, 4), torch.zeros(1, 4)), r"equal shapes"),
    "choices": (lambda: HintonKD()(torch.zeros(3, 4).long(), torch.zeros(3, 4)), "int64"),
    "no axis": (lambda: SkewKL()(torch.tensor(1.0), torch.tensor(1.0)), r"shape \(\)"),
    "temperature": (lambda: HintonKD(0.0), "positive"),
    "alpha": (lambda: SkewKL(1.0), "below 1"),
    "reduction": (lambda: SkewKL(reduction="average"), "mean, sum, none"),  # type: ignore[arg-type]
    "no part": (lambda: CorrelationLoss(0, 0, 0), "all 0"),
    "negative": (lambda: CorrelationLoss(classes=-1), "classes=-1"),
    "sharpness": (lambda: CorrelationLoss(sharpness=0), "positive"),
    "too many": (lambda: CorrelationLoss(rank=1)(*two(1, 2000)), "at most 1024"),
    "float mask": (
        lambda: HintonKD()(*two(3, 4), mask=torch.ones(3)),
        r"mask of torch.float32.*mask.bool\(\)",
    ),
    "mask of fewer axes": (
        lambda: HintonKD()(*two(3, 3, 4), mask=torch.ones(3).bool()),
        r"\(3,\), wanted \(3, 3\)",
    ),
    "mask of other sizes": (
        lambda: HintonKD()(*two(3, 4), mask=torch.ones(4).bool()),
        r"\(4,\), wanted \(3,\)",
    ),
    "labels": (lambda: TaskLoss()(torch.zeros(3, 4), torch.zeros(3, 4).long()), "cross_entropy"),
    "float labels": (lambda: TaskLoss()(torch.zeros(3, 4), torch.zeros(3)), "kind='mse'"),
    "smoothing": (lambda: TaskLoss("mse", 0.1), "label_smoothing=0.1 for mse"),
    "kind": (lambda: TaskLoss("hinge"), "cross_entropy, mse"),  # type: ignore[arg-type]
    "numbers": (lambda: TaskLoss("mse")(torch.zeros(3, 4), torch.zeros(3)), r"\(3, 4\) for mse"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_errors_say_what_is_wrong(name: str) -> None:
    call, pattern = MESSAGES[name]
    with pytest.raises(InputError, match=pattern) as caught:
        call()
    assert "\n" not in str(caught.value) and ", wanted " in str(caught.value)
