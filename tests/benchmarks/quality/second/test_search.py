"""The search: the same trials for all, and it follows the best wherever that lies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from quality.second.methods import BY_NAME, CENTRES
from quality.second.search import Merits, Trial, best_of, next_trial, open_axes

Peak = Callable[[Trial], float]
NAMES = tuple(CENTRES)


def peak(optimizer: str, rate: int, decay: int) -> Peak:
    def merit(trial: Trial) -> float:
        other = 5.0 * (trial.optimizer != optimizer)
        return 50.0 - abs(trial.rate - rate) - 0.7 * abs(trial.decay - decay) - other

    return merit


def searched(merit: Peak, trials: int, optimizers: tuple[str, ...] = NAMES) -> Merits:
    merits: dict[Trial, tuple[float, float]] = {}
    while len(merits) < trials:
        trial = next_trial(merits, optimizers)
        assert trial not in merits
        merits[trial] = merit(trial), 0.0
    return merits


@pytest.mark.parametrize("optimizer", NAMES)
@pytest.mark.parametrize("rate", [-7, -2, 0, 1, 6])
@pytest.mark.parametrize("decay", [0, 3])
def test_a_peak_is_found_and_is_interior(optimizer: str, rate: int, decay: int) -> None:
    merits = searched(peak(optimizer, rate, decay), 40)
    best = best_of(merits)
    assert best == Trial(optimizer, rate, decay)
    assert open_axes(best, merits) == ()


def test_every_optimizer_comes_first_and_each_has_three_rates_of_nine_trials() -> None:
    merits = searched(peak("sgd", 0, 0), 9)
    assert [t.optimizer for t in list(merits)[:3]] == list(NAMES)
    counts = {name: sum(t.optimizer == name for t in merits) for name in NAMES}
    assert set(counts.values()) == {3}


def test_a_method_with_two_optimizers_is_never_given_the_third() -> None:
    names = tuple(BY_NAME["repopt"].centres)
    assert {t.optimizer for t in searched(peak("muon", 0, 0), 16, names)} == set(names)


def test_an_edge_is_told_and_no_decay_is_a_natural_end() -> None:
    best = Trial("sgd", 4, 1)
    rates = {Trial("sgd", 4 + k, 1): (0.0, 0.0) for k in (-2, 2)}
    decays = {Trial("sgd", 4, d): (0.0, 0.0) for d in (0, 2)}
    whole = {best: (1.0, 0.0), **rates, **decays}
    assert open_axes(best, whole) == ()
    for lost, axis in [(Trial("sgd", 6, 1), "rate"), (Trial("sgd", 2, 1), "rate")] + [
        (Trial("sgd", 4, 2), "decay"),
        (Trial("sgd", 4, 0), "decay"),
    ]:
        assert open_axes(best, {t: m for t, m in whole.items() if t != lost}) == (axis,)
    at_none = {Trial("sgd", k): (0.0, 0.0) for k in (-1, 0, 1)} | {Trial("sgd", 0, 1): (0, 0)}
    assert open_axes(Trial("sgd"), at_none) == ()


def test_a_flat_merit_is_searched_without_end_or_repetition() -> None:
    assert len(searched(lambda _trial: 0.5, 60)) == 60


def test_equal_accuracy_is_decided_by_the_loss() -> None:
    low, high = Trial("sgd"), Trial("sgd", 1)
    assert best_of({low: (0.9, 0.2), high: (0.9, 0.3)}) == low
    assert best_of({low: (0.9, 0.2), high: (0.91, 0.3)}) == high


def test_decay_is_a_share_of_the_weight_over_the_run() -> None:
    trial = Trial("adamw", rate=4, decay=3)
    rate = trial.learning_rate(CENTRES)
    assert rate == pytest.approx(10**-0.5)
    assert trial.weight_decay(CENTRES, 200) * rate * 200 == pytest.approx(1.0)
    assert Trial("adamw", 4).weight_decay(CENTRES, 200) == 0.0
