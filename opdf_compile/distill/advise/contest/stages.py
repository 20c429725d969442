"""The stages of a contest: what steps cost, the tuning of every side, the sets of final runs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from opdf_compile.distill.advise.contest.int8 import SEEDS, Rounding
from opdf_compile.distill.advise.contest.program import (
    Heat,
    Heats,
    Lane,
    Program,
    heats_of,
    program_of,
)
from opdf_compile.distill.advise.contest.ruling import Basis
from opdf_compile.distill.advise.contest.runner import Runner
from opdf_compile.distill.advise.entrants import PLAIN
from opdf_compile.distill.advise.final import FIRST_SEED
from opdf_compile.distill.advise.timetable import Pace
from opdf_compile.distill.advise.track import Track
from opdf_compile.distill.advise.trainer import OutOfTime, Trained
from opdf_compile.errors import InputError

# A set is started only if the longest so far would fit with this to spare.
_SLACK = 1.05
# Steps of the student that shows what int8 costs.
_SHORT = 6
RunsOfSeed = Mapping[Heat, Trained]


@dataclass(frozen=True, eq=False)
class Finished:
    """A contest that was run.

    Attributes:
        program: What the budget bought.
        heats: The runs of each seed.
        sets: These runs, seed by seed.
    """

    program: Program
    heats: Heats
    sets: Sequence[RunsOfSeed]


class Stages:
    """Runs a contest.

    Args:
        track: Where runs are run.
        runners: The plain student, the plain student with more steps, then the contenders.
        bases: What is to be equal.
        rounding: Shown the students of the first seeds; None where int8 was not asked for.
    """

    def __init__(
        self,
        track: Track,
        runners: Sequence[Runner],
        bases: Sequence[Basis],
        rounding: Rounding | None,
    ) -> None:
        self._track, self._runners, self._bases = track, runners, bases
        self._rounding = rounding

    def run(self, whole: int, most_sets: int) -> Finished:
        """All stages.

        Args:
            whole: Steps of the recipe.
            most_sets: Sets that are enough.

        Raises:
            InputError: The budget is too small, or ends before a set does.
        """
        track = self._track
        apart = [runner for runner in self._runners if not runner.contender.longer]
        track.calibrate({one.pace: (one.entrant, one.grid.rate) for one in apart})
        self._require_costs()
        with contextlib.suppress(OutOfTime):
            left, lanes = track.left - self._rounding_needs(), self._lanes(track.slowness)
            program = program_of(track.budget, left, whole, lanes, self._bases, most_sets=most_sets)
            self._tune(program)
            # From here on lengths stay: every seed's runs are of as many steps.
            heats = heats_of(self._lanes(), program.steps, self._bases)
            if found := self._final(heats, program.sets):
                return Finished(program, heats, found)
        raise InputError(
            f"the budget of {track.budget:g} s ended before a set of final runs did: the machine "
            "became slower meanwhile; give a larger --budget"
        )

    def _require_costs(self) -> None:
        if not self._track.paces()[PLAIN].step > 0:
            raise InputError(
                "a step of the plain student takes no time that the clock can measure, so that "
                "nothing can be given equal time; give --equal steps, or larger batches"
            )

    def _lanes(self, slowness: float = 1.0) -> list[Lane]:
        """What the sides cost; in seconds of the budget where its slowness is given."""
        paces = self._track.paces()
        return [
            Lane(
                runner.name,
                runner.contender.times,
                _scaled(paces[runner.pace], slowness),
                plain=runner.pace == PLAIN,
            )
            for runner in self._runners
        ]

    def _rounding_needs(self) -> float:
        """Seconds that quantising takes: it is tried twice, as the first time imports, too."""
        if self._rounding is None:
            return 0.0
        track, plain, trial = self._track, self._runners[0], Rounding()
        track.say("measuring the cost of int8")
        before = track.used
        for place in range(2):
            before = track.used
            track.run(
                plain.pace,
                plain.entrant,
                (plain.grid.rate, 0.0),
                holdout=track.holdouts.tuning(),
                seed=0,
                steps=_SHORT,
                then=partial(trial.measure, place),
            )
        counted = sum(not runner.contender.longer for runner in self._runners)
        return (track.used - before) * SEEDS * counted

    def _tune(self, program: Program) -> None:
        """Give the next run to the side that has had the least work, until all have had theirs."""
        lanes = self._lanes()
        waiting = dict(
            zip(self._runners, (lane.steps(program.steps) for lane in lanes), strict=True)
        )
        while waiting:
            runner, whole = min(waiting.items(), key=lambda pair: pair[0].used / pair[1])
            allowed = program.work * whole
            runner.search.used = runner.used / allowed
            trial = runner.search.ask()
            steps = max(1, round(program.shares[trial.rung] * whole))
            if runner.used + steps > allowed:
                del waiting[runner]
                continue
            runner.tune(self._track, trial, steps)

    def _final(self, heats: Heats, most: int) -> list[RunsOfSeed]:
        """Sets of runs until there are enough, or the next would not fit into the time.

        How many there are does not depend on what they show.
        """
        track, found, longest = self._track, list[RunsOfSeed](), 0.0
        parts = track.holdouts.parts(most)
        while len(found) < parts and track.left >= _SLACK * longest:
            before, runs = track.left, dict[Heat, Trained]()
            # Heats take turns in going first: a machine that warms up favours none.
            turn = len(found) % len(heats.all)
            for heat in (*heats.all[turn:], *heats.all[:turn]):
                try:
                    runs[heat] = self._heat(heats, heat, len(found), parts)
                except OutOfTime:
                    return found
            found.append(runs)
            longest = max(longest, before - track.left)
        return found

    def _heat(self, heats: Heats, heat: Heat, place: int, parts: int) -> Trained:
        runner, then = self._runners[heat.lane], None
        self._track.say(f"final comparison, set {place + 1}: {runner.name}")
        counted = heat in heats.own and not runner.contender.longer
        if self._rounding is not None and place < SEEDS and counted:
            then = partial(self._rounding.measure, heat.lane)
        return self._track.run(
            runner.pace,
            runner.entrant,
            runner.setting,
            holdout=self._track.holdouts.final(place, parts),
            seed=FIRST_SEED + place,
            steps=heat.steps,
            then=then,
        )


def _scaled(pace: Pace, by: float) -> Pace:
    return replace(pace, setup=by * pace.setup, step=by * pace.step, around=by * pace.around)
