"""Where the runs of a race are run: the job's examples, a trainer, a budget, and what runs cost."""

from __future__ import annotations

import math
from collections.abc import Mapping

from opdf_compile.distill.advise.advice import Tried
from opdf_compile.distill.advise.entrants import Entrant
from opdf_compile.distill.advise.grid import Grid
from opdf_compile.distill.advise.holdouts import Holdout, Holdouts
from opdf_compile.distill.advise.search import Search
from opdf_compile.distill.advise.timetable import Pace, pace_of
from opdf_compile.distill.advise.trainer import Clock, OutOfTime, Then, Trained, Trainer
from opdf_compile.distill.engine import Say
from opdf_compile.distill.recipe import Job
from opdf_compile.errors import InputError

_CALIBRATION_STEPS = 6
_CALIBRATION_ROUNDS = 3
# What calibration may cost, as a share of the budget; one round there always is.
_CALIBRATION_SHARE = 0.05
# What is kept back for the statistics after the last run.
_CLOSING_SHARE = 0.01


class Track:
    """Runs runs within a budget, and remembers what those of each name cost.

    Attributes:
        holdouts: What is learned from and scored on.
        budget: Seconds that were given.
        spent: Seconds of them that were gone before.
    """

    def __init__(
        self,
        job: Job,
        budget: float,
        spent: float,
        clock: Clock,
        progress: Say | None,
        meter: Clock | None = None,
    ) -> None:
        """Start the clock, and compute the teacher's outputs if the recipe keeps them.

        Args:
            job: The prepared recipe.
            budget: Seconds in all.
            spent: Seconds of them that are gone.
            clock: Seconds, of any zero.
            progress: Called with a sentence and the share of the budget that is used.
            meter: Seconds that runs are said to cost, where that is another clock.

        Raises:
            InputError: The budget ends before that.
        """
        if spent >= budget:
            raise InputError(
                f"the budget of {budget:g} s is too little time: loading what the recipe names "
                f"took {spent:.1f} s; give a larger --budget"
            )
        self.budget, self.spent = budget, spent
        self._started, self._clock = clock() - spent, clock
        self._up, self._progress = job.metric.higher_is_better, progress or (lambda *_: None)
        self._end = (1 - _CLOSING_SHARE) * budget
        self._runs: dict[str, list[Trained]] = {}
        self.say("tracing and planning the student")
        self.holdouts = Holdouts(job)
        try:
            self._trainer = Trainer(job, self.holdouts, clock, self._started + self._end, meter)
        except OutOfTime:
            raise InputError(
                f"the budget of {budget:g} s is too little time: the teacher's outputs alone "
                "take longer; give a larger --budget"
            ) from None

    @property
    def used(self) -> float:
        """Seconds of the budget that are gone."""
        return self._clock() - self._started

    @property
    def left(self) -> float:
        """Seconds that runs may still take."""
        return self._end - self.used

    def calibrate(self, methods: Mapping[str, tuple[Entrant, float]]) -> None:
        """Short runs of every method in turns, so that a busy moment hits all of them.

        Args:
            methods: Each with its learning rate, by the name that its runs are remembered by.

        Raises:
            InputError: The budget ends meanwhile.
        """
        holdout = self.holdouts.tuning()
        for turn in range(_CALIBRATION_ROUNDS):
            # The first round is not counted: first uses import, allocate and choose algorithms.
            steps = _CALIBRATION_STEPS if turn else 1
            for name, (method, lr) in methods.items():
                self.say(f"measuring the cost of a step: {method.name}")
                try:
                    run = self._trainer.run(method, lr, 0.0, holdout=holdout, seed=0, steps=steps)
                except OutOfTime:
                    raise InputError(
                        f"the budget of {self.budget:g} s is too little time: it ended while the "
                        "cost of a step was measured; give a larger --budget"
                    ) from None
                if turn:
                    self._runs.setdefault(name, []).append(run)
            if turn and self.used - self.spent > _CALIBRATION_SHARE * self.budget:
                return

    def run(
        self,
        name: str,
        method: Entrant,
        setting: tuple[float, float],
        *,
        holdout: Holdout,
        seed: int,
        steps: int,
        then: Then | None = None,
    ) -> Trained:
        """A run with a learning rate and a weight decay; its cost is remembered by a name.

        Raises:
            OutOfTime: The budget ended.
        """
        trained = self._trainer.run(
            method, *setting, holdout=holdout, seed=seed, steps=steps, then=then
        )
        self._runs[name].append(trained)
        return trained

    def paces(self) -> dict[str, Pace]:
        """What runs have cost so far, by name."""
        return {name: pace_of(runs) for name, runs in self._runs.items()}

    @property
    def slowness(self) -> float:
        """Seconds of the budget per second that runs are said to cost."""
        runs = [run for some in self._runs.values() for run in some]
        return sum(run.wall for run in runs) / sum(run.cost for run in runs)

    def tried(
        self, search: Search, grid: Grid, steps: Mapping[tuple[str, int], int]
    ) -> list[Tried]:
        """What a search tried; the steps of its runs are given by method and rung."""
        return [
            Tried(
                rung + 1,
                point.method,
                grid.lr(point),
                grid.weight_decay(point),
                steps[point.method, rung],
                len(search.scores[rung][point]),
                self.shown(search.mean(rung, point).value),
            )
            for rung in range(len(search.scores))
            for point in search.ranking(rung)
        ]

    def shown(self, value: float) -> float | None:
        """A score as the metric itself; None where it diverged."""
        if value == -math.inf:
            return None
        return value if self._up else -value

    def say(self, text: str, *_: object) -> None:
        """Tell what is being done."""
        self._progress(text, min(1.0, self.used / self.budget))
