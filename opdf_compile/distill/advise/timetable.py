"""How a budget of seconds becomes runs: their length, the tuning, and the pairs of the final.

Every run takes the same time, whoever runs: a run is as long as the plain student's with so many
steps, and the over-parameterised student takes the steps that fit into that time, less the time
its decomposition took. Two thirds of the budget belong to the final comparison; a small budget
gives up to a half to the tuning, because an untuned side decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, median

from opdf_compile.distill.advise.entrants import PLAIN
from opdf_compile.distill.advise.trainer import Trained
from opdf_compile.errors import InputError

FINAL_SHARE = 2 / 3
FEWEST_PAIRS = 8
MOST_PAIRS = 30
# Shorter runs say nothing about a recipe's, unless the recipe itself is as short.
FEWEST_STEPS = 30
# Runs of full length that tuning costs per side: fewer choose blindly, more buy little.
_MOST_TUNING = 60
_LEAST_TUNING = 2
# What rung 1 wants to try per method: its scans, and some neighbours.
_SCANNED = 11
# The share of the tuning time that rung 1 has; search.py says where it ends.
_FIRST_RUNG = 0.4
_SHORTEST_SHARE = 1 / 16
_SHORTEST_STEPS = 6
# The first steps of a run allocate and warm up.
_WARM = 2
# A budget that is just enough would be missed when the machine is a little slower.
_SLACK = 1.1


@dataclass(frozen=True)
class Pace:
    """What a method's runs cost.

    Attributes:
        setup: Seconds before the first step: optimizer, decomposition.
        step: Seconds per optimizer step.
        around: Seconds to make the student and to score it.
    """

    setup: float
    step: float
    around: float


def pace_of(runs: list[Trained]) -> Pace:
    """The mean step of one method's runs, and the medians of what surrounds the steps.

    The mean, because a run takes the sum of its steps, slow ones included.
    """
    steps = [s for run in runs for s in (run.step_seconds[_WARM:] or run.step_seconds)]
    return Pace(median(run.setup for run in runs), fmean(steps), median(run.around for run in runs))


@dataclass(frozen=True)
class Timetable:
    """What the budget buys.

    Attributes:
        steps: Steps of a plain run; those of the recipe, or fewer.
        whole: Steps of the recipe.
        tuning: Seconds of tuning for each side.
        pairs: Pairs of runs that the final comparison has time for.
        shares: Length of a run in each rung, as a share of `steps`.
    """

    steps: int
    whole: int
    tuning: float
    pairs: int
    shares: tuple[float, float, float]


def seconds_of(steps: float, plain: Pace) -> float:
    """Seconds that a run may train: those of the plain student."""
    return plain.setup + steps * plain.step


def steps_of(
    method: str, plain_steps: float, paces: Mapping[str, Pace], *, ahead: float = 0.0
) -> int:
    """Steps of a method in the time of a plain run; at least one.

    Args:
        method: Its name.
        plain_steps: Steps of the plain run.
        paces: What the methods cost.
        ahead: Seconds that plain runs have had more so far; half a run at most is made up for.
    """
    if method == PLAIN:
        return max(1, round(plain_steps))
    pace = paces[method]
    time = seconds_of(plain_steps, paces[PLAIN])
    left = time + max(-time / 2, min(time / 2, ahead)) - pace.setup
    return max(1, math.floor(left / pace.step + 1e-6))


def timetable(
    budget: float,
    used: float,
    whole: int,
    paces: Mapping[str, Pace],
    *,
    most_pairs: int,
    spent: float = 0.0,
) -> Timetable:
    """Divide the budget.

    Args:
        budget: Seconds in all.
        used: Seconds that are gone.
        whole: Steps of the recipe.
        paces: What the methods cost.
        most_pairs: Pairs that are enough.
        spent: Seconds of `used` that were gone before the race; no stage's share counts them.

    Raises:
        InputError: The budget is too small for runs that would say something, or the recipe's run
            too short for a step of every method.
    """
    _require_room(whole, paces)
    given, budget, used = budget, budget - spent, used - spent
    plain, around = paces[PLAIN], max(pace.around for pace in paces.values())
    least = min(whole, max(FEWEST_STEPS, _plain_steps(_SHORTEST_STEPS, paces)))
    pairs = min(FEWEST_PAIRS, most_pairs)

    def fitting(seconds: float) -> int:
        return min(whole, math.floor((seconds / (2 * pairs) - around - plain.setup) / plain.step))

    tuning = ((1 - FINAL_SHARE) * budget - used) / 2
    wanted = _tuning_needed(fitting(FINAL_SHARE * budget), around, paces)
    if tuning < wanted:
        tuning = min(wanted, (0.5 * budget - used) / 2)
    left = budget - used - 2 * tuning
    steps = fitting(left)
    if steps < least or tuning < (1 - 1e-9) * _tuning_needed(steps, around, paces):
        needed = _needed(used, (least, whole), around, pairs, paces)
        raise InputError(_too_little(given, spent, needed, (least, whole), around, paces[PLAIN]))
    cost = seconds_of(steps, plain) + around
    tuning = min(tuning, _MOST_TUNING * cost)
    first = _FIRST_RUNG * tuning / _scanned(paces) - around
    first = min(1.0, max(_shortest(steps, paces), first / seconds_of(steps, plain)))
    pairs = min(most_pairs, math.floor(left / (2 * cost)))
    return Timetable(steps, whole, tuning, pairs, (first, math.sqrt(first), 1.0))


def _tuning_needed(steps: int, around: float, paces: Mapping[str, Pace]) -> float:
    """Seconds in which a side can scan its settings and confirm some in whole runs."""
    run = seconds_of(steps, paces[PLAIN])
    scan = _scanned(paces) * (_shortest(steps, paces) * run + around)
    return max(scan / _FIRST_RUNG, _LEAST_TUNING * (run + around))


def _scanned(paces: Mapping[str, Pace]) -> int:
    """What the first rung wants to try; the over-parameterised side's number decides for both."""
    return _SCANNED * (len(paces) - 1)


def _shortest(steps: int, paces: Mapping[str, Pace]) -> float:
    """The least share of a run that still shows something."""
    return min(1.0, max(_SHORTEST_SHARE, _plain_steps(_SHORTEST_STEPS, paces) / max(1, steps)))


def _plain_steps(steps: int, paces: Mapping[str, Pace]) -> int:
    """Plain steps in whose time every method takes so many, after its set-up."""
    plain = paces[PLAIN]
    return max(
        math.ceil((pace.setup - plain.setup + steps * pace.step) / plain.step)
        for pace in paces.values()
    )


def _require_room(whole: int, paces: Mapping[str, Pace]) -> None:
    """Refuse a recipe that is over before a method has taken a step: nothing would be equal."""
    wanted = _plain_steps(1, paces)
    if whole < wanted:
        slowest = max(paces, key=lambda name: paces[name].setup + paces[name].step)
        raise InputError(
            f"the recipe's run of {whole} steps takes {seconds_of(whole, paces[PLAIN]):.2g} s, in "
            f"which {slowest} cannot take one step: its set-up takes {paces[slowest].setup:.2g} s "
            f"and a step {paces[slowest].step:.2g} s; wanted at least {wanted} steps in "
            "[training], or a plan of fewer weights"
        )


def _needed(
    used: float, lengths: tuple[int, ...], around: float, pairs: int, paces: Mapping[str, Pace]
) -> list[float]:
    """Seconds that races with runs of these lengths would take."""

    def needed(steps: int) -> float:
        final = 2 * pairs * (seconds_of(steps, paces[PLAIN]) + around)
        tuning = 2 * _tuning_needed(steps, around, paces)
        return _SLACK * max(final + used + tuning, 2 * (used + tuning))

    return [needed(steps) for steps in lengths]


def _too_little(
    budget: float,
    spent: float,
    needed: list[float],
    lengths: tuple[int, int],
    around: float,
    plain: Pace,
) -> str:
    # What loading took, it will take again.
    least, whole = (math.ceil(seconds + _SLACK * spent) for seconds in needed)
    shortest, longest = (seconds_of(steps, plain) + around for steps in lengths)
    loading = f" after loading took {spent:.0f} s" if spent >= 1 else ""
    longer = f", or {whole} for whole runs of {longest:.2g} s" if whole > least else ""
    return (
        f"the budget of {budget:g} s is too little time{loading}: a run of {lengths[0]} steps "
        f"takes {shortest:.2g} s, and tuning and {FEWEST_PAIRS} pairs of runs are wanted; give "
        f"--budget {least}{longer}"
    )
