"""What `advise` found: both sides' tuning, the paired comparison, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from opdf_compile.distill.advise.significance import Duel, Paired

_Verdict = Literal["use", "do-not-use", "no-difference", "undecided"]


@dataclass(frozen=True)
class Tried:
    """A setting in a rung of the tuning.

    Attributes:
        rung: 1, 2 or 3.
        method: Name of the method.
        lr: Learning rate.
        weight_decay: Weight decay.
        steps: Steps per run.
        seeds: How many runs.
        score: Mean of the metric; None where a run diverged.
    """

    rung: int
    method: str
    lr: float
    weight_decay: float
    steps: int
    seeds: int
    score: float | None


@dataclass(frozen=True)
class Side:
    """One side of the race.

    Attributes:
        method: The method that it chose.
        lines: The recipe's section `plan` for it; empty where that stays as it is.
        without: What the recipe has and it does not: "[alignment]", "decay in [optimizer]".
        lr: The learning rate that it chose.
        weight_decay: The weight decay that it chose.
        at_edge: Whether time ran out before its choice had neighbours on both sides.
        tried: What the tuning tried, the best of each rung first.
        tuning_runs: Runs of the tuning.
        tuning_seconds: What they took.
        final_seconds: What its final runs took.
        final_steps: Steps of each.
        step_seconds: Median seconds per step.
        setup_seconds: Median seconds before the first step.
        scores: Its metric in the final comparison, one per seed; None where a run diverged.
    """

    method: str
    lines: Mapping[str, Any]
    without: tuple[str, ...]
    lr: float
    weight_decay: float
    at_edge: bool
    tried: tuple[Tried, ...]
    tuning_runs: int
    tuning_seconds: float
    final_seconds: float
    final_steps: int
    step_seconds: float
    setup_seconds: float
    scores: tuple[float | None, ...]

    @property
    def diverged(self) -> int:
        """Final runs that diverged."""
        return sum(score is None for score in self.scores)


@dataclass(frozen=True)
class Advice:
    """The recommendation and what it rests on.

    Attributes:
        plain: The plain student's side.
        over: The over-parameterised side.
        comparison: Over-parameterised minus plain, positive where it is better, over the seeds
            where neither diverged; None where there are none.
        seeds: The final seeds.
        metric: Name of the metric.
        higher_is_better: Which way is up for `plain.scores` and `over.scores`.
        whole: Steps of the recipe's own run.
        budget: Seconds that were given.
        seconds: Seconds that were used.
        spent: Seconds of them that were gone before the race, for loading.
        most_pairs: Pairs that were enough.
        scored: Examples that each final pair was scored on; no two pairs share any.
        mixed: Whether these were parts of the training part; see `holdouts`.
        notes: What a user should know, in sentences.
    """

    plain: Side
    over: Side
    comparison: Paired | None
    seeds: tuple[int, ...]
    metric: str
    higher_is_better: bool
    whole: int
    budget: float
    seconds: float
    spent: float
    most_pairs: int
    scored: int
    mixed: bool
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> _Verdict:
        """What the final comparison allows to say.

        A side that lost with a setting at the edge of what was tried has not lost: "undecided".
        """
        if self.gain == 0:
            return "no-difference"
        loser = self.plain if self.gain > 0 else self.over
        if loser.at_edge:
            return "undecided"
        return "use" if self.gain > 0 else "do-not-use"

    @property
    def gain(self) -> int:
        """1 where the over-parameterised side is shown to be better, -1 worse, 0 neither.

        A run that diverged has no place in a mean, but it has lost: then wins are counted.
        """
        return self._duel.shown()

    @property
    def wins(self) -> tuple[int, int]:
        """Pairs that the over-parameterised side won and lost; ties count for neither."""
        return self._duel.wins

    @property
    def _duel(self) -> Duel:
        return Duel(self.over.scores, self.plain.scores, self.higher_is_better)

    @property
    def final_share(self) -> float:
        """The part of the race's time that the final comparison had."""
        final = self.plain.final_seconds + self.over.final_seconds
        return final / (self.seconds - self.spent)

    @property
    def seconds_needed(self) -> float | None:
        """A budget with which a difference of the size found would be seen; None if unknown."""
        needed = self.comparison.seeds_needed if self.comparison else None
        if needed is None:
            return None
        final = self.plain.final_seconds + self.over.final_seconds
        pair = final / len(self.seeds)
        # A race gives the final comparison no more than two thirds of what loading leaves.
        return max(self.seconds - final + needed * pair, self.spent + 1.5 * needed * pair)
