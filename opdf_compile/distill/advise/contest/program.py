"""Who runs how long: the heats of a set, and how a budget becomes steps, tuning and sets.

A set is one seed: every contender once, and the plain student once for each number of steps that a
contender is compared at. With k times the plain student's N steps, set-up s and seconds c per step,

    equal steps  plain takes k N steps
    equal time   plain takes n steps,  s0 + n c0 = s + k N c

Runs of the plain student that differ by less than the measuring does are one run. Every side has
the same work to find its setting: T times the steps of one of its runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from opdf_compile.distill.advise.contest.ruling import Basis
from opdf_compile.distill.advise.search import ENDS
from opdf_compile.distill.advise.timetable import FEWEST_PAIRS, FEWEST_STEPS, Pace
from opdf_compile.errors import InputError

# Lengths of plain runs that are nearer than this are one: so exactly are steps not measured.
_ALIKE = 0.02
_TUNING_SHARE = 1 / 3
_MOST_TUNING, _LEAST_TUNING = 60.0, 2.0
# What rung 1 wants to try: its scans, and some neighbours.
_SCANNED = 11
_SHORTEST_SHARE, _SHORTEST_STEPS = 1 / 16, 6
_SLACK = 1.1


@dataclass(frozen=True)
class Lane:
    """What a side costs.

    Attributes:
        name: Of the contender.
        times: Its steps over the plain student's.
        pace: Seconds of what it does.
        plain: Whether it is the plain student, with more steps or not.
    """

    name: str
    times: float
    pace: Pace
    plain: bool = False

    def steps(self, base: int) -> int:
        """Its steps where the plain student takes `base`."""
        return max(1, round(self.times * base))

    def seconds(self, steps: float) -> float:
        """Of a run that is scored, too."""
        return self.pace.setup + steps * self.pace.step + self.pace.around


@dataclass(frozen=True)
class Heat:
    """One run of a set.

    Attributes:
        lane: Whose setting it takes, as a place among the lanes.
        steps: How long it is.
    """

    lane: int
    steps: int


@dataclass(frozen=True)
class Heats:
    """The runs of a set.

    Attributes:
        all: Each once, the plain student's usual run first.
        own: The heat of each lane, in the order of the lanes.
        rivals: The plain heat that each lane meets, by what is equal; none for the plain student.
    """

    all: tuple[Heat, ...]
    own: tuple[Heat, ...]
    rivals: tuple[Mapping[Basis, Heat], ...]


def heats_of(lanes: Sequence[Lane], base: int, bases: Sequence[Basis]) -> Heats:
    """The runs of a set whose plain run has `base` steps.

    Args:
        lanes: The plain student, the plain student with more steps, then the contenders.
        base: Steps.
        bases: What is to be equal.
    """
    own = [Heat(place, lane.steps(base)) for place, lane in enumerate(lanes)]
    plain = [heat for heat in own if lanes[heat.lane].plain]
    met = list(plain)

    def rival(steps: int) -> Heat:
        near = min(met, key=lambda heat: abs(math.log(heat.steps / steps)))
        if abs(near.steps - steps) <= _ALIKE * steps:
            return near
        # A plain run of another length takes the setting of the nearest that was tuned.
        tuned = min(plain, key=lambda heat: abs(math.log(heat.steps / steps)))
        met.append(Heat(tuned.lane, steps))
        return met[-1]

    rivals: list[Mapping[Basis, Heat]] = []
    for heat, lane in zip(own, lanes, strict=True):
        if lane.plain:
            rivals.append({"steps": own[0]} if heat.lane else {})
            continue
        asked = {"steps": heat.steps, "time": equal_time(lane, heat.steps, lanes[0])}
        rivals.append({basis: rival(asked[basis]) for basis in bases})
    return Heats(tuple(dict.fromkeys([*own, *met])), tuple(own), tuple(rivals))


def equal_time(lane: Lane, steps: int, plain: Lane) -> int:
    """Plain steps in the time of a contender's run, at least one."""
    time = lane.pace.setup + steps * lane.pace.step
    return max(1, round((time - plain.pace.setup) / plain.pace.step))


@dataclass(frozen=True)
class Program:
    """What a budget buys.

    Attributes:
        steps: Steps of the plain student's usual run.
        work: Steps that each side tunes with, over those of one of its runs.
        sets: Sets of final runs.
        shares: Length of a run in each rung of the tuning, as a share of a whole one.
    """

    steps: int
    work: float
    sets: int
    shares: tuple[float, float, float]


def program_of(
    given: float,
    left: float,
    whole: int,
    lanes: Sequence[Lane],
    bases: Sequence[Basis],
    *,
    most_sets: int,
) -> Program:
    """Divide the time that is left.

    Args:
        given: Seconds of the budget.
        left: Seconds of it that are left.
        whole: Steps of the recipe.
        lanes: What the sides cost, by the clock of the budget.
        bases: What is to be equal.
        most_sets: Sets that are enough.

    Raises:
        InputError: It is too little for runs that would say something.
    """
    fewest = min(FEWEST_PAIRS, most_sets)

    def tuning(base: int, work: float) -> float:
        return sum(_tuning_seconds(lane, base, work) for lane in lanes)

    def final(base: int) -> float:
        heats = heats_of(lanes, base, bases).all
        return sum(lanes[heat.lane].seconds(heat.steps) for heat in heats)

    def needed(base: int) -> float:
        return _SLACK * (fewest * final(base) + tuning(base, _least_work(base)))

    least = min(whole, FEWEST_STEPS)
    if needed(least) > left:
        more = needed(least) - left, needed(whole) - left
        raise InputError(_too_little(given, more, least, len(lanes)))
    base = _largest(least, whole, lambda steps: needed(steps) <= left)
    work, spare = _least_work(base), left / _SLACK - fewest * final(base)
    while work < _MOST_TUNING and tuning(base, work + 1) <= min(spare, _TUNING_SHARE * left):
        work += 1
    sets = math.floor((left / _SLACK - tuning(base, work)) / final(base))
    first = _first_share(base, work)
    return Program(base, work, min(most_sets, sets), (first, math.sqrt(first), 1.0))


def _least_work(base: int) -> float:
    """Work in which rung 1 can scan, in runs as short as still say something."""
    return max(_LEAST_TUNING, _SCANNED * _shortest(base) / ENDS[0])


def _shortest(base: int) -> float:
    return min(1.0, max(_SHORTEST_SHARE, _SHORTEST_STEPS / base))


def _first_share(base: int, work: float) -> float:
    return min(1.0, max(_shortest(base), ENDS[0] * work / _SCANNED))


def _tuning_seconds(lane: Lane, base: int, work: float) -> float:
    first = _first_share(base, work)
    runs = ENDS[0] / first + (ENDS[1] - ENDS[0]) / math.sqrt(first) + ENDS[2] - ENDS[1]
    around = lane.pace.setup + lane.pace.around
    return work * (lane.steps(base) * lane.pace.step + runs * around)


def _largest(least: int, most: int, fits: Callable[[int], bool]) -> int:
    """The largest whole number up to `most` that fits; `least` does."""
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least


def _too_little(given: float, more: tuple[float, float], steps: int, sides: int) -> str:
    least, whole = (math.ceil(given + seconds) for seconds in more)
    longer = f", or {whole} for whole runs" if whole > least else ""
    return (
        f"the budget of {given:g} s is too little time for {sides} ways to train, plain with more "
        f"steps among them: wanted are their tuning and {FEWEST_PAIRS} sets of runs of {steps} "
        f"steps; give --budget {least}{longer}, or fewer contenders"
    )
