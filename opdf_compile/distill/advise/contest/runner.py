"""A contender, or the plain student, while it races: its search, and what it has used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opdf_compile.distill.advise.advice import Side
from opdf_compile.distill.advise.contest.contenders import Contender, Resolver
from opdf_compile.distill.advise.entrants import PLAIN, Entrant
from opdf_compile.distill.advise.grid import Grid, grid_of
from opdf_compile.distill.advise.search import Search, Trial
from opdf_compile.distill.advise.track import Track
from opdf_compile.distill.advise.trainer import Trained


@dataclass(eq=False)
class Runner:
    """One side of a contest.

    Attributes:
        contender: What it is.
        entrant: How its student and optimizer are made.
        grid: Its rates and decays.
        search: Its tuning.
        optimizer: The recipe's section `optimizer` for it, where it is another class.
        used: Steps of its tuning so far.
        seconds: What the tuning cost.
        runs: Runs of the tuning.
        steps: Steps of these runs, by rung.
    """

    contender: Contender
    entrant: Entrant
    grid: Grid
    search: Search
    optimizer: Mapping[str, Any]
    used: int = 0
    seconds: float = 0.0
    runs: int = 0
    steps: dict[tuple[str, int], int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the contender."""
        return self.contender.name

    @property
    def pace(self) -> str:
        """The name that its costs go by: a longer plain run's step costs what a plain one does."""
        return PLAIN if self.contender.longer else self.name

    @property
    def setting(self) -> tuple[float, float]:
        """The learning rate and the weight decay that it chose."""
        best = self.search.best
        return self.grid.lr(best), self.grid.weight_decay(best)

    def tune(self, track: Track, trial: Trial, steps: int) -> None:
        """Run a trial of the search.

        Raises:
            OutOfTime: The budget ended.
        """
        lr, decay = self.grid.lr(trial.point), self.grid.weight_decay(trial.point)
        track.say(f"tuning, rung {trial.rung + 1}: {self.name}, lr {lr:g}, decay {decay:g}")
        run = track.run(
            self.pace,
            self.entrant,
            (lr, decay),
            holdout=track.holdouts.tuning(),
            seed=trial.seed,
            steps=steps,
        )
        self.used += steps
        self.runs += 1
        self.seconds += run.cost
        self.steps[trial.point.method, trial.rung] = steps
        self.search.tell(trial, run.score)

    def raced(self, track: Track, runs: Sequence[Trained]) -> Side:
        """What became of it, with its final runs."""
        lr, decay = self.setting
        pace = track.paces()[self.pace]
        return Side(
            method=self.name,
            lines=self.entrant.lines,
            without=self.entrant.without,
            lr=lr,
            weight_decay=decay,
            at_edge=self.search.at_edge(self.search.best),
            tried=tuple(track.tried(self.search, self.grid, self.steps)),
            tuning_runs=self.runs,
            tuning_seconds=self.seconds,
            final_seconds=sum(run.cost for run in runs),
            final_steps=runs[0].steps,
            step_seconds=pace.step,
            setup_seconds=pace.setup,
            scores=tuple(track.shown(run.score.value) for run in runs),
        )


def runner_of(resolver: Resolver, contender: Contender) -> Runner:
    """A contender that has not run yet.

    Raises:
        InputError: It does not fit the recipe or its student.
    """
    section = resolver.section(contender)
    grid, entrant = grid_of(section), resolver.entrant(contender)
    other = section is not resolver.job.recipe.optimizer
    lines = section.model_dump(exclude_defaults=True) if other else {}
    return Runner(contender, entrant, grid, Search([contender.name], grid), lines)
