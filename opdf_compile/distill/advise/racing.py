"""`advise`: a paired race on the user's own student and data, within a budget of seconds.

1. calibration  what a step of each method costs, measured in turns
2. tuning       each side (plain; over-parameterised) has the same seconds to find its best setting
3. final        fresh seeds and fresh examples, both sides at their best setting, pair by pair

The choice between methods (md, hyperball, aligned) is a part of the over-parameterised side's
tuning. Only its result meets the plain student in the final, on seeds and examples that the tuning
has not seen: so there is one comparison, and the interval needs no correction for the choice.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from opdf_compile.distill.advise.advice import Advice, Side
from opdf_compile.distill.advise.entrants import PLAIN, Entrant, entrants
from opdf_compile.distill.advise.final import PairOfRuns, final
from opdf_compile.distill.advise.grid import Grid, grid_of
from opdf_compile.distill.advise.holdouts import Holdout
from opdf_compile.distill.advise.notes import race_notes
from opdf_compile.distill.advise.search import Search, Trial
from opdf_compile.distill.advise.significance import paired
from opdf_compile.distill.advise.timetable import (
    MOST_PAIRS,
    Pace,
    Timetable,
    steps_of,
    timetable,
)
from opdf_compile.distill.advise.track import Track
from opdf_compile.distill.advise.trainer import Clock, OutOfTime, Trained
from opdf_compile.distill.engine import Say, whole_run
from opdf_compile.distill.recipe import Job
from opdf_compile.errors import InputError


def advise(
    job: Job,
    *,
    budget_seconds: float = 600.0,
    most_pairs: int = MOST_PAIRS,
    spent_seconds: float = 0.0,
    clock: Clock = time.perf_counter,
    progress: Say | None = None,
) -> Advice:
    """Race plain against over-parameterised training, and say which to use.

    Args:
        job: A prepared recipe.
        budget_seconds: What may be taken in all.
        most_pairs: Pairs of final runs that are enough, at least 2.
        spent_seconds: What of the budget is gone already, for loading; the race has the rest.
        clock: Seconds, of any zero.
        progress: Called with a sentence and the share of the budget that is used.

    Returns:
        The advice. Both sides' metric and differences are on validation examples; the test part is
        never read.

    Raises:
        InputError: The budget has no meaning, or is too small: the sentence says what is needed.
    """
    require_limits(budget_seconds, most_pairs)
    track = Track(job, budget_seconds, spent_seconds, clock, progress)
    return _Race(job, track, most_pairs).advice()


@dataclass
class _Tuning:
    """A side while it is tuned."""

    name: str
    search: Search
    seconds: float = 0.0
    runs: int = 0
    done: bool = False
    steps: dict[tuple[str, int], int] = field(default_factory=dict)


class _Race:
    def __init__(self, job: Job, track: Track, most_pairs: int) -> None:
        self._job, self._track, self._most_pairs = job, track, most_pairs
        self._entrants = {method.name: method for method in entrants(job)}
        self._grid: Grid = grid_of(job.recipe.optimizer)

    def advice(self) -> Advice:
        """Run the stages."""
        track, rate = self._track, self._grid.rate
        track.calibrate({name: (method, rate) for name, method in self._entrants.items()})
        paces = track.paces()
        whole = whole_run(self._job)
        spent, pairs = track.spent, self._most_pairs
        table = timetable(track.budget, track.used, whole, paces, most_pairs=pairs, spent=spent)
        over = [name for name in self._entrants if name != PLAIN]
        sides = [
            _Tuning(PLAIN, Search([PLAIN], self._grid)),
            _Tuning("over-parameterised", Search(over, self._grid)),
        ]
        with contextlib.suppress(OutOfTime):
            self._tune(sides, table, paces)
            if found := self._final(sides, table):
                return self._advice(sides, table, found)
        raise InputError(
            f"the budget of {track.budget:g} s ended before a pair of final runs did: the "
            "machine became slower meanwhile; give a larger --budget"
        )

    def _tune(self, sides: list[_Tuning], table: Timetable, paces: dict[str, Pace]) -> None:
        """Give the next run to the side that has used less time, until both have used theirs."""
        while waiting := [side for side in sides if not side.done]:
            side = min(waiting, key=lambda side: side.seconds)
            side.search.used = side.seconds / table.tuning
            trial = side.search.ask()
            name, share = trial.point.method, table.shares[trial.rung]
            steps = steps_of(name, share * table.steps, paces)
            cost = paces[name].setup + steps * paces[name].step + paces[name].around
            if side.seconds + cost > table.tuning:
                side.done = True
                continue
            self._try(side, trial, steps)

    def _try(self, side: _Tuning, trial: Trial, steps: int) -> None:
        point = trial.point
        lr, decay = self._grid.lr(point), self._grid.weight_decay(point)
        self._track.say(
            f"tuning, rung {trial.rung + 1}: {point.method}, lr {lr:g}, decay {decay:g}"
        )
        run = self._track.run(
            point.method,
            self._entrants[point.method],
            (lr, decay),
            holdout=self._track.holdouts.tuning(),
            seed=trial.seed,
            steps=steps,
        )
        side.seconds += run.cost
        side.runs += 1
        side.steps[point.method, trial.rung] = steps
        side.search.tell(trial, run.score)

    def _final(self, sides: list[_Tuning], table: Timetable) -> list[PairOfRuns]:
        chosen, track = [self._chosen(side) for side in sides], self._track

        def steps(ahead: float) -> list[int]:
            # All runs so far say what a step costs. Where that was wrong, on a machine that others
            # use too, the next run makes up for it.
            paces = track.paces()
            return [
                table.steps,
                steps_of(chosen[1][0].name, table.steps, paces, ahead=ahead),
            ]

        def run(place: int, holdout: Holdout, seed: int, count: int) -> Trained:
            method, lr, decay = chosen[place]
            return track.run(
                method.name, method, (lr, decay), holdout=holdout, seed=seed, steps=count
            )

        return final(
            run,
            steps,
            track.holdouts,
            parts=track.holdouts.parts(table.pairs),
            left=lambda: track.left,
            say=track.say,
        )

    def _chosen(self, side: _Tuning) -> tuple[Entrant, float, float]:
        best = side.search.best
        return self._entrants[best.method], self._grid.lr(best), self._grid.weight_decay(best)

    def _advice(self, sides: list[_Tuning], table: Timetable, pairs: list[PairOfRuns]) -> Advice:
        track, metric = self._track, self._job.metric
        paces, up = track.paces(), metric.higher_is_better
        plain, over = (
            self._side(side, [pair.runs[place] for pair in pairs], paces)
            for place, side in enumerate(sides)
        )
        differences = [d for pair in pairs if (d := pair.difference) is not None]
        return Advice(
            plain,
            over,
            paired(differences) if differences else None,
            tuple(pair.seed for pair in pairs),
            metric.name,
            up,
            table.whole,
            track.budget,
            track.used,
            track.spent,
            self._most_pairs,
            track.holdouts.size_of(track.holdouts.parts(table.pairs)),
            track.holdouts.mixed,
            race_notes(self._job, table.steps, plain, over),
        )

    def _side(self, side: _Tuning, runs: Sequence[Trained], paces: dict[str, Pace]) -> Side:
        method, lr, decay = self._chosen(side)
        return Side(
            method.name,
            method.lines,
            method.without,
            lr,
            decay,
            side.search.at_edge(side.search.best),
            tuple(self._track.tried(side.search, self._grid, side.steps)),
            side.runs,
            side.seconds,
            sum(run.cost for run in runs),
            round(fmean(run.steps for run in runs)),
            paces[method.name].step,
            paces[method.name].setup,
            tuple(self._track.shown(run.score.value) for run in runs),
        )


def require_limits(seconds: float, pairs: int = MOST_PAIRS) -> None:
    """Refuse a budget or a number of pairs without meaning.

    Raises:
        InputError: The seconds are not a positive number, or the pairs fewer than two.
    """
    if not 0 < seconds < float("inf"):
        raise InputError(
            f"the budget is {seconds} s, wanted a positive number of seconds; the default is 600"
        )
    if pairs < 2:
        raise InputError(
            f"the final comparison is to have {pairs} pairs, wanted at least 2 for an interval; "
            f"the default is {MOST_PAIRS}"
        )
