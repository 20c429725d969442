"""The race is fair: one start, one order of images, rates chosen on validation, test held out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from opdf_compile.distill.digits import Digits, Split, load_digits
from opdf_compile.distill.fitting import Curve, fit, reproducible, schedule, score
from opdf_compile.distill.race import Budget, Race, choose_rate, race

TINY = Budget(rates=(0.01, 0.02), seeds=(0, 1), epochs=1, teacher_epochs=1)


def _cut(split: Split, count: int) -> Split:
    return Split(split.images[:count], split.labels[:count])


@pytest.fixture(scope="module")
def digits() -> Digits:
    whole = load_digits()
    return Digits(_cut(whole.train, 192), _cut(whole.validation, 80), _cut(whole.test, 100))


def _race(digits: Digits) -> Race:
    return race(digits, TINY, lambda text, share: None)


@pytest.fixture(scope="module")
def found(digits: Digits) -> Race:
    return _race(digits)


def _curve(accuracy: float, entropy: float) -> Curve:
    return Curve((1.0,), (accuracy,), (entropy,), 1.0)


@pytest.mark.parametrize(
    ("curves", "wanted"),
    [
        ({0.1: [_curve(0.9, 1.0)], 0.2: [_curve(0.8, 0.1)]}, 0.1),
        ({0.1: [_curve(0.9, 1.0)], 0.2: [_curve(0.9, 0.5)]}, 0.2),
        ({0.1: [_curve(0.9, math.nan)], 0.2: [_curve(0.9, 9.0)]}, 0.2),
        ({0.1: [_curve(0.9, 1.0), _curve(0.1, 1.0)], 0.2: [_curve(0.6, 1.0)] * 2}, 0.2),
    ],
    ids=["best accuracy", "tie by cross-entropy", "diverged loses ties", "mean over seeds"],
)
def test_the_rate_is_chosen_by_mean_validation_accuracy(
    curves: dict[float, list[Curve]], wanted: float
) -> None:
    assert choose_rate(curves) == wanted


def test_the_same_race_gives_the_same_accuracies(digits: Digits, found: Race) -> None:
    torch.manual_seed(1234)
    again = _race(digits)
    for one, other in ((found.plain, again.plain), (found.overparam, again.overparam)):
        assert one.accuracies == other.accuracies
        assert one.validation == other.validation
        assert [c.loss for c in one.curves] == [c.loss for c in other.curves]


def test_no_choice_looks_at_the_test_split(digits: Digits, found: Race) -> None:
    wrong = Split(digits.test.images, (digits.test.labels + 1) % 10)
    again = _race(dataclasses.replace(digits, test=wrong))
    assert again.plain.rate == found.plain.rate
    assert again.overparam.rate == found.overparam.rate
    assert again.plain.validation == found.plain.validation
    assert again.overparam.validation == found.overparam.validation
    assert again.plain.accuracies != found.plain.accuracies


def test_both_methods_start_at_the_same_loss_with_the_same_images(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[tuple[str, float, Any]] = []

    def spy(model: nn.Module, train: Split, validation: Split, **options: Any) -> Curve:
        accuracy, entropy = score(model, validation)
        shared = {k: options[k] for k in ("rate", "epochs", "batch", "seed")}
        starts.append((type(model).__name__, entropy, shared))
        return Curve((1.0,), (accuracy,), (entropy,), 1.0)

    monkeypatch.setattr("opdf_compile.distill.race.fit", spy)
    _race(digits)
    _teacher, *students = starts
    assert len(students) == TINY.runs
    for plain, overparam in zip(students[::2], students[1::2], strict=True):
        assert (plain[0], overparam[0]) == ("Student", "Expanded")
        assert plain[1] == pytest.approx(overparam[1], rel=1e-5)
        assert plain[2] == overparam[2]
    # Another seed is another start.
    assert abs(students[0][1] - students[-2][1]) > 1e-4


def test_the_over_parameterised_student_comes_back_as_the_class_it_was(found: Race) -> None:
    plain, folded = found.plain.student, found.overparam.student
    assert type(folded) is type(plain)
    assert folded.state_dict().keys() == plain.state_dict().keys()
    assert not folded.training
    assert found.plan.cost.parameters > found.plan.deployed


def test_the_callers_random_state_and_threads_come_back() -> None:
    torch.manual_seed(5)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="stop"), reproducible(7):
        torch.rand(3)
        raise RuntimeError("stop")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_schedule_warms_up_and_decays_to_zero() -> None:
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == 1.0
    assert rates[-1] < 0.001
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_fit_learns_and_reports_each_epoch(digits: Digits) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    labels = digits.train.labels
    curve = fit(
        model,
        digits.train,
        digits.validation,
        loss=lambda logits, i: nn.functional.cross_entropy(logits, labels[i]),
        rate=0.05,
        epochs=4,
        batch=32,
        seed=0,
    )
    assert len(curve.loss) == len(curve.accuracy) == len(curve.cross_entropy) == 4
    assert curve.loss[-1] < curve.loss[0]
    assert curve.accuracy[-1] == score(model, digits.validation)[0] > 0.5
    assert not model.training
