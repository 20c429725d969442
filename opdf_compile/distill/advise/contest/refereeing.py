"""`referee`: any number of ways to train against the plain student, by steps and by time.

1. calibration  what a step of each contender costs, measured in turns beside plain ones
2. tuning       every side (each contender; plain; plain with more steps) has the same work
3. final        fresh seeds and fresh examples; on each seed a run of every contender, and plain
                runs of as many steps and of as much time

The time of a run is the processor's on a CPU, which other programs do not lengthen, and the clock's
on a GPU. The budget is the clock's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Literal

from opdf_compile.distill.advise.advice import Side
from opdf_compile.distill.advise.contest.contenders import (
    Contender,
    Resolver,
    longer_plain,
    parse_contenders,
)
from opdf_compile.distill.advise.contest.int8 import SEEDS, Rounding
from opdf_compile.distill.advise.contest.program import (
    Heat,
    Heats,
    Lane,
    Program,
    heats_of,
    program_of,
)
from opdf_compile.distill.advise.contest.ruling import BASES, Basis, Bout, Ruling, Standing
from opdf_compile.distill.advise.entrants import PLAIN, Entrant
from opdf_compile.distill.advise.final import FIRST_SEED
from opdf_compile.distill.advise.grid import Grid, grid_of
from opdf_compile.distill.advise.notes import side_notes
from opdf_compile.distill.advise.racing import require_limits
from opdf_compile.distill.advise.search import Search
from opdf_compile.distill.advise.significance import Duel
from opdf_compile.distill.advise.timetable import MOST_PAIRS, Pace
from opdf_compile.distill.advise.track import Track
from opdf_compile.distill.advise.trainer import Clock, OutOfTime, Then, Trained
from opdf_compile.distill.engine import Say, machine_for, whole_run
from opdf_compile.distill.recipe import Job
from opdf_compile.errors import InputError
from opdf_compile.io import require_quantiser

Equal = Literal["steps", "time", "both"]
_SLACK = 1.05
_SHORT = 6


def referee(
    job: Job,
    contenders: str,
    *,
    equal: Equal = "both",
    after: Literal["int8"] | None = None,
    budget_seconds: float = 600.0,
    most_pairs: int = MOST_PAIRS,
    spent_seconds: float = 0.0,
    clock: Clock = time.perf_counter,
    progress: Say | None = None,
) -> Ruling:
    """Race contenders against the plain student, and say which to use, or to train longer.

    Args:
        job: A prepared recipe.
        contenders: Names with commas between: parametrizations, optimizers, "gains+muon",
            "plain@2x".
        equal: What contenders and plain student have the same of: "steps", "time", or "both".
        after: "int8" also measures what quantisation costs each of them.
        budget_seconds: What may be taken in all.
        most_pairs: Seeds of the final comparison that are enough, at least 2.
        spent_seconds: What of the budget is gone already, for loading.
        clock: Seconds, of any zero.
        progress: Called with a sentence and the share of the budget that is used.

    Raises:
        InputError: A contender is not known or does not fit, an option has no meaning, or the
            budget is too small: the sentence says what is needed.

    Example:
        >>> ruling = referee(job, "gains,muon", budget_seconds=600)  # doctest: +SKIP
        >>> ruling.verdict  # doctest: +SKIP
        'more-steps'
    """
    require_limits(budget_seconds, most_pairs)
    if equal not in ("steps", "time", "both"):
        raise InputError(f"equal is {equal!r}, wanted steps, time or both; give one of them")
    if after not in (None, "int8"):
        raise InputError(f"after is {after!r}, wanted int8 or nothing; give int8")
    if after is not None:
        require_quantiser()
    asked = parse_contenders(contenders)
    bases: tuple[Basis, ...] = BASES if equal == "both" else (equal,)
    meter = _meter(job, clock) if "time" in bases else clock
    track = Track(job, budget_seconds, spent_seconds, clock, progress, meter)
    rounding = None if after is None else Rounding()
    return _Contest(job, track, asked, bases, rounding).ruling(most_pairs)


def _meter(job: Job, clock: Clock) -> Clock:
    """Processor time where that is what is used up; any clock of the caller's stays."""
    own = clock is time.perf_counter
    return time.process_time if own and _on_cpu(job) else clock


def _on_cpu(job: Job) -> bool:
    return machine_for(job.recipe.training).device.type == "cpu"


@dataclass(eq=False)
class _Side:
    """A contender, or the plain student, while it races.

    Attributes:
        contender: What it is.
        entrant: How its student and optimizer are made.
        grid: Its rates and decays.
        search: Its tuning.
        used: Steps of its tuning so far.
        seconds: What the tuning cost.
        runs: Its runs.
        steps: Steps of the tuning's runs, by rung.
    """

    contender: Contender
    entrant: Entrant
    grid: Grid
    search: Search
    used: int = 0
    seconds: float = 0.0
    runs: int = 0
    steps: dict[tuple[str, int], int] = field(default_factory=dict)

    @property
    def pace(self) -> str:
        """The name that its costs go by: a longer plain run's step costs what a plain one does."""
        return PLAIN if self.contender.longer else self.contender.name

    @property
    def setting(self) -> tuple[float, float]:
        """The learning rate and the weight decay that it chose."""
        best = self.search.best
        return self.grid.lr(best), self.grid.weight_decay(best)


_Set = Mapping[Heat, Trained]


class _Contest:
    def __init__(
        self,
        job: Job,
        track: Track,
        asked: Sequence[Contender],
        bases: tuple[Basis, ...],
        rounding: Rounding | None,
    ) -> None:
        self._job, self._track, self._bases, self._rounding = job, track, bases, rounding
        self._resolver = Resolver(job)
        longer = longer_plain(asked)
        rivals = [contender for contender in asked if not contender.longer]
        if not rivals:
            raise InputError(
                "the contenders are the plain student alone, wanted one beside it; more steps of "
                "the plain student race in any case: name some, such as --contenders gains,muon"
            )
        self._sides = [self._side(one) for one in (Contender(PLAIN), *longer, *rivals)]
        self._count = 1 + len(longer)

    def _side(self, contender: Contender) -> _Side:
        grid = grid_of(self._resolver.section(contender))
        entrant = self._resolver.entrant(contender)
        return _Side(contender, entrant, grid, Search([contender.name], grid))

    def ruling(self, most_sets: int) -> Ruling:
        """Run the stages."""
        track = self._track
        apart = [side for side in self._sides if not side.contender.longer]
        track.calibrate({side.pace: (side.entrant, side.grid.rate) for side in apart})
        self._require_costs()
        whole, left = whole_run(self._job), track.left - self._rounding_needs()
        by_clock = self._lanes(track.slowness)
        program = program_of(track.budget, left, whole, by_clock, self._bases, most_sets=most_sets)
        with contextlib.suppress(OutOfTime):
            self._tune(program)
            # From here on lengths stay: every seed's runs are of as many steps.
            heats = heats_of(self._lanes(), program.steps, self._bases)
            if found := self._final(heats, program.sets):
                return self._ruling(program, heats, found, most_sets)
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
                side.contender.name,
                side.contender.times,
                _scaled(paces[side.pace], slowness),
                plain=place < self._count,
            )
            for place, side in enumerate(self._sides)
        ]

    def _rounding_needs(self) -> float:
        """Seconds that quantising takes: one student is tried, which imports what it needs, too."""
        if self._rounding is None:
            return 0.0
        self._track.say("measuring the cost of int8")
        before, trial = self._track.used, Rounding()
        for place in (0, 1):
            before = self._track.used
            self._run(self._sides[0], 0, _SHORT, then=partial(trial.measure, place))
        return (self._track.used - before) * SEEDS * (len(self._sides) - self._count + 1)

    def _run(self, side: _Side, seed: int, steps: int, *, then: Then | None = None) -> Trained:
        """A run on the tuning's examples at the grid's middle."""
        setting, holdout = (side.grid.rate, 0.0), self._track.holdouts.tuning()
        options = {"seed": seed, "steps": steps}
        return self._track.run(
            side.pace, side.entrant, setting, holdout=holdout, then=then, **options
        )

    def _tune(self, program: Program) -> None:
        """Give the next run to the side that has had the least work, until all have had theirs."""
        done: set[int] = set()
        allowed = [
            program.work * max(1, round(side.contender.times * program.steps))
            for side in self._sides
        ]
        while waiting := [k for k in range(len(self._sides)) if k not in done]:
            place = min(waiting, key=lambda k: self._sides[k].used / allowed[k])
            side = self._sides[place]
            side.search.used = side.used / allowed[place]
            trial = side.search.ask()
            steps = max(1, round(program.shares[trial.rung] * allowed[place] / program.work))
            if side.used + steps > allowed[place]:
                done.add(place)
                continue
            lr, decay = side.grid.lr(trial.point), side.grid.weight_decay(trial.point)
            rung, name = trial.rung + 1, side.contender.name
            self._track.say(f"tuning, rung {rung}: {name}, lr {lr:g}, decay {decay:g}")
            run = self._track.run(
                side.pace,
                side.entrant,
                (lr, decay),
                holdout=self._track.holdouts.tuning(),
                seed=trial.seed,
                steps=steps,
            )
            side.used, side.runs, side.seconds = (
                side.used + steps,
                side.runs + 1,
                side.seconds + run.cost,
            )
            side.steps[trial.point.method, trial.rung] = steps
            side.search.tell(trial, run.score)

    def _final(self, heats: Heats, most: int) -> list[_Set]:
        """Sets of runs until there are enough, or the next would not fit into the time."""
        track, found, longest = self._track, list[_Set](), 0.0
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
        side, then = self._sides[heat.lane], None
        self._track.say(f"final comparison, set {place + 1}: {side.contender.name}")
        counted = heat.lane == 0 or heat.lane >= self._count
        if self._rounding is not None and place < SEEDS and counted and heat in heats.own:
            then = partial(self._rounding.measure, heat.lane)
        return self._track.run(
            side.pace,
            side.entrant,
            side.setting,
            holdout=self._track.holdouts.final(place, parts),
            seed=FIRST_SEED + place,
            steps=heat.steps,
            then=then,
        )

    def _ruling(self, program: Program, heats: Heats, sets: list[_Set], most_sets: int) -> Ruling:
        track, job = self._track, self._job
        sides = [self._raced(k, [s[heats.own[k]] for s in sets]) for k in range(len(self._sides))]
        standings = [self._standing(place, heats, sets, side) for place, side in enumerate(sides)]
        parts = track.holdouts.parts(program.sets)
        return Ruling(
            plain=sides[0],
            contenders=tuple(standings[self._count :]),
            longer=tuple(standings[1 : self._count]),
            seeds=tuple(FIRST_SEED + place for place in range(len(sets))),
            metric=job.metric.name,
            higher_is_better=job.metric.higher_is_better,
            whole=whole_run(job),
            budget=track.budget,
            seconds=track.used,
            spent=track.spent,
            most_sets=most_sets,
            scored=track.holdouts.size_of(parts),
            mixed=track.holdouts.mixed,
            plain_int8=None if self._rounding is None else self._rounding.of(0),
            notes=side_notes(job, program.steps, sides),
        )

    def _raced(self, place: int, runs: Sequence[Trained]) -> Side:
        side = self._sides[place]
        lr, decay = side.setting
        pace = self._track.paces()[side.pace]
        return Side(
            side.contender.name,
            side.entrant.lines,
            side.entrant.without,
            lr,
            decay,
            side.search.at_edge(side.search.best),
            tuple(self._track.tried(side.search, side.grid, side.steps)),
            side.runs,
            side.seconds,
            sum(run.cost for run in runs),
            runs[0].steps,
            pace.step,
            pace.setup,
            tuple(self._track.shown(run.score.value) for run in runs),
        )

    def _standing(self, place: int, heats: Heats, sets: list[_Set], side: Side) -> Standing:
        ours = heats.own[place]
        bouts = {
            basis: Bout(
                Duel(side.scores, self._scores(sets, rival), self._job.metric.higher_is_better),
                ours.steps,
                rival.steps,
                fmean(s[ours].seconds for s in sets) / fmean(s[rival].seconds for s in sets),
            )
            for basis, rival in heats.rivals[place].items()
        }
        contender, paces = self._sides[place].contender, self._track.paces()
        section = self._resolver.section(contender)
        other = section is not self._job.recipe.optimizer
        return Standing(
            side,
            contender.times,
            paces[self._sides[place].pace].step / paces[PLAIN].step,
            bouts,
            section.model_dump(exclude_defaults=True) if other else {},
            None if self._rounding is None else self._rounding.of(place),
        )

    def _scores(self, sets: list[_Set], heat: Heat) -> tuple[float | None, ...]:
        return tuple(self._track.shown(some[heat].score.value) for some in sets)


def _scaled(pace: Pace, by: float) -> Pace:
    return replace(pace, setup=by * pace.setup, step=by * pace.step, around=by * pace.around)
