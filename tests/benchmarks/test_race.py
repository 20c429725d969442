"""The race: everything once per round, in changing order, until rounds or budget are used."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from bench.clock import Clock, timed
from bench.race import LEAST_ROUNDS, MOST_ROUNDS, race

CLOCK = Clock(torch.device("cpu"))


def run(names: str, *, seed: int = 0, **options) -> tuple[dict[str, list[float]], list[str]]:
    calls: list[str] = []
    contenders = {name: lambda name=name: calls.append(name) for name in names}
    times = race(contenders, clock=CLOCK, rng=np.random.default_rng(seed), **options)
    return times, calls


def test_every_round_runs_each_once_in_an_order_drawn_anew():
    times, calls = run("abc", rounds=20)
    rounds = [tuple(calls[start : start + 3]) for start in range(0, 60, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1
    assert {name: len(values) for name, values in times.items()} == {"a": 20, "b": 20, "c": 20}


def test_the_order_is_fixed_by_the_seed():
    assert run("abcd", rounds=9)[1] == run("abcd", rounds=9)[1]
    assert run("abcd", rounds=9)[1] != run("abcd", rounds=9, seed=1)[1]


@pytest.mark.parametrize(("budget", "wanted"), [(1e-9, LEAST_ROUNDS), (1e9, MOST_ROUNDS)])
def test_the_budget_decides_within_bounds(budget: float, wanted: int):
    times, _ = run("a", budget=budget)
    assert len(times["a"]) == wanted


def test_a_contender_may_take_its_own_time():
    times = race({"own": lambda: 42.0}, clock=CLOCK, rng=np.random.default_rng(0), rounds=2)
    assert times == {"own": [42.0, 42.0]}


def test_progress_rises_to_the_end_and_the_collector_comes_back():
    shares: list[float] = []
    collecting: list[bool] = []

    def progress(text: str, share: float) -> None:
        shares.append(share)
        collecting.append(gc.isenabled())

    run("ab", rounds=3, progress=progress)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0) and len(shares) == 6
    assert not any(collecting) and gc.isenabled()


@pytest.mark.parametrize(("kind", "seconds"), [("wall", 5.0), ("cpu", 2.0)])
def test_processor_time_leaves_out_what_others_take(
    kind: str, seconds: float, monkeypatch: pytest.MonkeyPatch
):
    """A call of 5 s, of which a neighbour had the processor for 3."""
    wall, own = iter([10.0, 15.0]), iter([1.0, 3.0])
    monkeypatch.setattr("bench.race.time.perf_counter", lambda: next(wall))
    monkeypatch.setattr("bench.race.time.process_time", lambda: next(own))
    assert timed(lambda: None, Clock(CLOCK.device, kind)) == seconds  # type: ignore[arg-type]
