"""How a budget of seconds becomes runs: their length, the tuning, and the pairs of the final.

Every run takes the same time, whoever runs: a run is as long as the plain student's with so many
steps, and the over-parameterised student takes the steps that fit into that time, less the time
its decomposition took. Two thirds of the budget belong to the final comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from opdf_compile.distill.advise.methods import PLAIN
from opdf_compile.distill.advise.runner import Trained
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
_SCANNED = 12
# The share of the tuning time that rung 1 has; search.py says where it ends.
_FIRST_RUNG = 0.4
_SHORTEST_SHARE = 1 / 16
_SHORTEST_STEPS = 10
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
    """The medians over some runs of one method."""
    steps = [s for run in runs for s in (run.step_seconds[_WARM:] or run.step_seconds)]
    return Pace(
        median(run.setup for run in runs), median(steps), median(run.around for run in runs)
    )


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


def steps_of(method: str, plain_steps: float, paces: Mapping[str, Pace]) -> int:
    """Steps of a method in the time of a plain run; at least one."""
    if method == PLAIN:
        return max(1, round(plain_steps))
    pace = paces[method]
    left = seconds_of(plain_steps, paces[PLAIN]) - pace.setup
    return max(1, math.floor(left / pace.step + 1e-6))


def timetable(
    budget: float, used: float, whole: int, paces: Mapping[str, Pace], *, most_pairs: int
) -> Timetable:
    """Divide the budget.

    Args:
        budget: Seconds in all.
        used: Seconds that are gone.
        whole: Steps of the recipe.
        paces: What the methods cost.
        most_pairs: Pairs that are enough.

    Raises:
        InputError: The budget is too small for runs that would say something.
    """
    plain, around = paces[PLAIN], max(pace.around for pace in paces.values())
    # A run must leave the slowest set-up time for some steps, too.
    least = max(min(FEWEST_STEPS, whole), _least_steps(paces))
    pairs = min(FEWEST_PAIRS, most_pairs)
    left = min(FINAL_SHARE * budget, budget - used)
    fits = math.floor((left / (2 * pairs) - around - plain.setup) / plain.step)
    steps = min(whole, fits)
    tuning = (budget - left - used) / 2
    cost = seconds_of(steps, plain) + around
    if steps < min(least, whole) or tuning < _LEAST_TUNING * cost:
        raise InputError(_too_little(budget, used, min(least, whole), whole, plain, around, pairs))
    tuning = min(tuning, _MOST_TUNING * cost)
    pairs = min(most_pairs, math.floor(left / (2 * cost)))
    first = (_FIRST_RUNG * tuning / (_SCANNED * (len(paces) - 1)) - around) / (cost - around)
    shortest = max(_SHORTEST_SHARE, min(1.0, _SHORTEST_STEPS / steps))
    first = min(1.0, max(shortest, first))
    return Timetable(steps, whole, tuning, pairs, (first, math.sqrt(first), 1.0))


def _least_steps(paces: Mapping[str, Pace]) -> int:
    plain = paces[PLAIN]
    setup = max(pace.setup for pace in paces.values()) - plain.setup
    return math.ceil(2 * setup / plain.step)


def _too_little(
    budget: float, used: float, least: int, whole: int, plain: Pace, around: float, pairs: int
) -> str:
    def needed(steps: int) -> int:
        run = seconds_of(steps, plain) + around
        tuning = used + 2 * _LEAST_TUNING * run
        return math.ceil(_SLACK * max(2 * pairs * run / FINAL_SHARE, tuning / (1 - FINAL_SHARE)))

    shortest, longest = seconds_of(least, plain) + around, seconds_of(whole, plain) + around
    whole_runs = f", or {needed(whole)} for whole runs of {longest:.2g} s" * (whole > least)
    return (
        f"the budget of {budget:g} s is too little time: a run of {least} steps takes "
        f"{shortest:.2g} s, and tuning and {pairs} pairs of runs are wanted; give --budget "
        f"{needed(least)}{whole_runs}"
    )
