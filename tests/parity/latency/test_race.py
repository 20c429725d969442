"""Whole races on a simulated clock: verdicts, budgets and shapes without waiting for anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from statistics import NormalDist

import numpy as np
import pytest

from opdf_compile.parity.latency import race as race_module
from opdf_compile.parity.latency.latency_result import SESSION_ROLES, SessionRole
from opdf_compile.parity.latency.race import (
    GOOD_ROUNDS,
    LEAST_GROUPS,
    LEAST_ROUNDS,
    LOOKS,
    MOST_GROUPS,
    MOST_ROUNDS,
    Question,
    Race,
)
from opdf_compile.parity.latency.ratio_interval import Spread

MARGIN = 0.05


class Course:
    """A bench that takes no time: runs cost what a noise model says, on a clock of its own."""

    def __init__(
        self,
        seed: int,
        ratios: Sequence[float] = (1.0,),
        *,
        seconds: float = 0.005,
        between: float = 0.005,
        within: float = 0.02,
        spikes: float = 0.05,
    ) -> None:
        self.rng, self.time = np.random.default_rng(seed), 0.0
        self.ratios, self.single = ratios, seconds
        self.between, self.within, self.spikes = between, within, spikes
        self.effects: dict[SessionRole, float] = {}
        self.first: list[int] = []
        self.measured: set[int] = set()

    def clock(self) -> float:
        return self.time

    def open(self, first: int) -> None:
        self.effects = {role: self.rng.normal(0.0, self.between) for role in SESSION_ROLES}
        self.first.append(first)
        self.measured = set()
        self.time += 0.1

    def warm_up(self, shape: int) -> float:
        self.measured.add(shape)
        self.time += 0.03
        return self.single

    def round(self, shape: int, runs: int, single: float) -> dict[SessionRole, float]:
        # The machine drifts by a fifth, slowly: all three sessions of a round meet it.
        drift = 0.2 * math.sin(self.time)
        return {role: self._block(role, shape, runs, drift) for role in SESSION_ROLES}

    def _block(self, role: SessionRole, shape: int, runs: int, drift: float) -> float:
        log = drift + self.effects[role] + self.rng.normal(0.0, self.within)
        if self.rng.random() < self.spikes:
            log += self.rng.exponential(1.0)
        ratio = self.ratios[shape] if role == "candidate" else 1.0
        seconds = self.single * ratio * math.exp(log)
        self.time += seconds * runs
        return seconds


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed here, so nothing needs the garbage collector out of the way."""
    monkeypatch.setattr(race_module, "undisturbed", nullcontext)


def race(course: Course, budget: float = 10.0) -> tuple[list[str], Race, str]:
    question = Question(MARGIN, "no-slower", len(course.ratios))
    found = Race(course, question, budget, clock=course.clock)
    ended = found.run()
    return [question.verdict(track.spreads()) for track in found.tracks], found, ended


@pytest.mark.parametrize("seconds", [0.0002, 0.005])
def test_equal_models_never_fail_and_a_tenth_slower_never_passes(seconds: float) -> None:
    equal = [race(Course(seed, seconds=seconds))[0][0] for seed in range(4)]
    slower = [race(Course(seed, [1.10], seconds=seconds))[0][0] for seed in range(4)]
    # A machine like this one is quiet enough to decide.
    assert equal == ["pass"] * 4 and slower == ["fail"] * 4


@pytest.mark.slow
def test_at_the_margin_itself_a_wrong_verdict_is_rare() -> None:
    """5 % at the end and at most 4 % more for the looks, with three standard errors."""
    trials = 200
    found = [race(Course(seed, [1 + MARGIN], seconds=0.02))[0][0] for seed in range(trials)]
    allowed = 0.09 + 3 * math.sqrt(0.09 * 0.91 / trials)
    assert found.count("pass") / trials <= allowed
    assert found.count("fail") / trials <= allowed


def test_noise_that_hides_the_margin_is_inconclusive() -> None:
    found, _, ended = race(Course(0, between=0.3, within=0.3))
    assert found == ["inconclusive"]
    assert ended == "the budget of 10 s was used"


def test_the_budget_holds_and_the_minimum_is_bought() -> None:
    course = Course(1, between=0.3)
    race(course, budget=10.0)
    assert course.time <= 10.0
    tiny = Course(1, between=0.3)
    _, found, _ = race(tiny, budget=1e-6)
    assert found.groups == LEAST_GROUPS
    assert found.tracks[0].rounds == LEAST_ROUNDS


def test_a_clear_verdict_ends_at_a_look() -> None:
    _, found, ended = race(Course(2))
    assert found.groups in LOOKS
    assert ended == f"the verdict was clear at 99% after {found.groups} groups"


def test_an_endless_budget_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "MOST_GROUPS", 5)
    _, found, ended = race(Course(3, between=1.0), budget=1e9)
    assert (found.groups, ended) == (5, "all 5 groups were measured")
    assert LOOKS[-1] < MOST_GROUPS


def test_all_shapes_must_pass_and_one_may_refute() -> None:
    passed, _, _ = race(Course(4, [1.0, 1.0, 0.9]))
    assert passed == ["pass", "pass", "pass"]
    mixed, _, ended = race(Course(4, [1.0, 1.3]))
    assert mixed[1] == "fail" and "clear" in ended


def test_a_clear_shape_gives_its_time_to_the_others() -> None:
    """At the margin itself the second shape stays open; the first one is measured no more."""
    course = Course(6, [0.8, 1 + MARGIN])
    _, found, _ = race(course)
    clear, close = found.tracks
    assert clear.closed and len(clear.groups) < len(close.groups) == found.groups
    assert course.measured == {1}
    assert course.first[:4] == [0, 1, 0, 1]


def test_rounds_take_about_as_long_as_making_sessions() -> None:
    _, found, _ = race(Course(6, seconds=0.002))
    # 0.13 s to make and warm up a group against 6 ms a round, disturbed by spikes.
    assert GOOD_ROUNDS <= found.tracks[0].rounds <= 25
    _, short, _ = race(Course(6, seconds=0.0001))
    assert short.tracks[0].rounds == MOST_ROUNDS


def spread(centre: float, deviation: float) -> Spread:
    """What many sessions with normal noise give."""
    quantiles = [NormalDist(0.0, deviation).inv_cdf((i + 0.5) / 2000) for i in range(2000)]
    return Spread(math.log(centre), np.array(quantiles), sessions=1000, share=0.0)


def test_several_shapes_share_the_error_of_a_false_fail() -> None:
    """Beyond the margin by 2 standard errors: enough for one shape, not for ten."""
    pair = spread((1 + MARGIN) * math.exp(0.02), 0.01), spread(1.0, 0.005)
    assert Question(MARGIN, "no-slower", 1).verdict(pair) == "fail"
    assert Question(MARGIN, "no-slower", 10).verdict(pair) == "inconclusive"
    clear = spread((1 + MARGIN) * math.exp(0.04), 0.01), pair[1]
    assert Question(MARGIN, "no-slower", 10).verdict(clear) == "fail"


def test_several_shapes_need_no_more_to_pass() -> None:
    pair = spread((1 + MARGIN) * math.exp(-0.02), 0.01), spread(1.0, 0.005)
    assert [Question(MARGIN, "no-slower", k).verdict(pair) for k in (1, 10)] == ["pass", "pass"]


def test_progress_never_goes_back() -> None:
    course, heard = Course(8, [1.0, 1.0]), []
    question = Question(MARGIN, "no-slower", 2)
    Race(
        course,
        question,
        5.0,
        lambda text, share: heard.append((text, share)),
        clock=course.clock,
    ).run()
    shares = [share for _, share in heard]
    assert shares == sorted(shares) and shares[0] >= 0.0 and shares[-1] <= 1.0
    assert heard[0][0] == "latency: group 1, 2 shapes open"
