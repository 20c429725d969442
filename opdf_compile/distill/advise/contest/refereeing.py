"""`referee`: any number of ways to train against the plain student, by steps and by time.

1. calibration  what a step of each contender costs, measured in turns beside plain ones
2. tuning       every side (each contender; plain; plain with more steps) has the same work
3. final        fresh seeds and fresh examples; on each seed a run of every contender, and plain
                runs of as many steps and of as much time

The time of a run is the processor's on a CPU, which other programs do not lengthen, and the clock's
on a GPU. The budget is the clock's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Literal

from opdf_compile.distill.advise.advice import Side
from opdf_compile.distill.advise.contest.contenders import (
    Contender,
    Resolver,
    longer_plain,
    parse_contenders,
)
from opdf_compile.distill.advise.contest.int8 import Rounding
from opdf_compile.distill.advise.contest.program import Heat
from opdf_compile.distill.advise.contest.ruling import BASES, Basis, Bout, Ruling, Standing
from opdf_compile.distill.advise.contest.runner import Runner, runner_of
from opdf_compile.distill.advise.contest.stages import Finished, RunsOfSeed, Stages
from opdf_compile.distill.advise.entrants import PLAIN
from opdf_compile.distill.advise.final import FIRST_SEED
from opdf_compile.distill.advise.notes import side_notes
from opdf_compile.distill.advise.racing import require_limits
from opdf_compile.distill.advise.significance import Duel
from opdf_compile.distill.advise.timetable import FEWEST_PAIRS, MOST_PAIRS
from opdf_compile.distill.advise.track import Track
from opdf_compile.distill.advise.trainer import Clock
from opdf_compile.distill.engine import Say, machine_for, whole_run
from opdf_compile.distill.recipe import Job
from opdf_compile.errors import InputError
from opdf_compile.io import require_quantiser

Equal = Literal["steps", "time", "both"]


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
    runners = _runners(job, asked)
    rounding = None if after is None else Rounding()
    finished = Stages(track, runners, bases, rounding).run(whole_run(job), most_pairs)
    return _Judge(job, track, runners, finished, rounding).ruling(most_pairs)


def _meter(job: Job, clock: Clock) -> Clock:
    """Processor time where that is what is used up; any clock of the caller's stays."""
    own = clock is time.perf_counter
    return time.process_time if own and _on_cpu(job) else clock


def _on_cpu(job: Job) -> bool:
    return machine_for(job.recipe.training).device.type == "cpu"


def _runners(job: Job, asked: Sequence[Contender]) -> list[Runner]:
    rivals = [contender for contender in asked if not contender.longer]
    if not rivals:
        raise InputError(
            "the contenders are the plain student alone, wanted one beside it; more steps of "
            "the plain student race in any case: name some, such as --contenders gains,muon"
        )
    resolver = Resolver(job)
    return [runner_of(resolver, one) for one in (Contender(PLAIN), *longer_plain(asked), *rivals)]


class _Judge:
    """Makes a ruling of the runs."""

    def __init__(
        self,
        job: Job,
        track: Track,
        runners: Sequence[Runner],
        finished: Finished,
        rounding: Rounding | None,
    ) -> None:
        self._job, self._track, self._runners = job, track, runners
        self._finished, self._rounding = finished, rounding

    def ruling(self, most_sets: int) -> Ruling:
        track, job, finished = self._track, self._job, self._finished
        standings = [self._standing(place) for place in range(1, len(self._runners))]
        longer = [one.contender.longer for one in self._runners[1:]]
        plain, parts = self._side(0), track.holdouts.parts(finished.program.sets)
        sides = [plain, *(standing.side for standing in standings)]
        return Ruling(
            plain=plain,
            contenders=tuple(s for s, more in zip(standings, longer, strict=True) if not more),
            longer=tuple(s for s, more in zip(standings, longer, strict=True) if more),
            seeds=tuple(FIRST_SEED + place for place in range(len(finished.sets))),
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
            notes=(*side_notes(job, finished.program.steps, sides), *self._few(most_sets)),
        )

    def _few(self, most_sets: int) -> Iterator[str]:
        """What to know of a final that had to end early."""
        count, wanted = len(self._finished.sets), min(FEWEST_PAIRS, most_sets)
        if count < wanted:
            yield (
                f"The machine became slower than it was measured to be: there was time for {count} "
                f"of {wanted} seeds. Give a larger --budget, or race when it is idle."
            )

    def _side(self, place: int) -> Side:
        own = self._finished.heats.own[place]
        return self._runners[place].raced(self._track, [s[own] for s in self._finished.sets])

    def _standing(self, place: int) -> Standing:
        runner, side, paces = self._runners[place], self._side(place), self._track.paces()
        heats = self._finished.heats
        return Standing(
            side,
            runner.contender.times,
            paces[runner.pace].step / paces[PLAIN].step,
            {b: self._bout(side, heats.own[place], r) for b, r in heats.rivals[place].items()},
            runner.optimizer,
            None if self._rounding is None else self._rounding.of(place),
        )

    def _bout(self, side: Side, ours: Heat, rival: Heat) -> Bout:
        sets = self._finished.sets
        theirs = tuple(self._track.shown(one[rival].score.value) for one in sets)
        duel = Duel(side.scores, theirs, self._job.metric.higher_is_better)
        return Bout(duel, ours.steps, rival.steps, _seconds(sets, ours) / _seconds(sets, rival))


def _seconds(sets: Sequence[RunsOfSeed], heat: Heat) -> float:
    return fmean(one[heat].seconds for one in sets)
