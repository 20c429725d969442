"""What a contest found, and the decision that follows from it.

Each contender meets the plain student on the same seeds, where both take equal steps and where both
take equal time. All of these duels are one family for Holm's correction: in at most one contest of
twenty is any contender called better that is not. Whether more steps help is a question of its own.

use            a contender is shown better at equal time. Where time was not raced: at equal steps.
more-steps     else, if the plain student is shown better with more steps: it still improves.
use            else, if a contender is shown better at equal steps: steps have no more to give.
do-not-use     else, if each contender is shown worse.
no-difference  else.
undecided      in place of one of these, if who loses by it lies at the edge of what was tried, and
               if every run diverged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from opdf_compile.distill.advise.advice import Side
from opdf_compile.distill.advise.significance import Duel, holm

Basis = Literal["steps", "time"]
Verdict = Literal["use", "more-steps", "do-not-use", "no-difference", "undecided"]
BASES: tuple[Basis, ...] = ("steps", "time")
# What decides wherever it was raced.
_FIRST: tuple[Basis, ...] = ("time", "steps")


@dataclass(frozen=True)
class Rounded:
    """A side's students before and after int8, on the same examples.

    Attributes:
        before: The metric, a number per seed.
        after: Of the same students quantised.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]

    def drop(self, higher_is_better: bool) -> float:
        """The mean of what is lost; positive where int8 is worse."""
        sign = 1 if higher_is_better else -1
        gaps = [sign * (b - a) for b, a in zip(self.before, self.after, strict=True)]
        return sum(gaps) / len(gaps)


@dataclass(frozen=True)
class Bout:
    """A duel with plain runs of as many steps, or of as much time.

    Attributes:
        duel: The scores; theirs are the plain student's.
        steps: Steps of ours.
        plain_steps: Steps of the plain runs.
        time: Seconds of our runs over those of the plain ones, as measured.
    """

    duel: Duel
    steps: int
    plain_steps: int
    time: float


@dataclass(frozen=True)
class Standing:
    """A contender, and how it did.

    Attributes:
        side: Its setting, tuning and scores.
        times: Its steps over the plain student's.
        cost: Seconds of one of its steps over those of a plain one, set-up left out.
        bouts: Against the plain student, by what is equal.
        optimizer: The recipe's section `optimizer` for it, where it is another class.
        int8: What quantisation does to it; None where that was not asked.
    """

    side: Side
    times: float
    cost: float
    bouts: Mapping[Basis, Bout]
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    int8: Rounded | None = None

    @property
    def name(self) -> str:
        """Of the contender."""
        return self.side.method


@dataclass(frozen=True)
class Decision:
    """What to do.

    Attributes:
        verdict: See the top of this file.
        of: The contender, or the longer plain run, that it is about: who wins, or else is ahead.
        by: Where it wins: at equal steps or equal time.
    """

    verdict: Verdict
    of: Standing
    by: Basis


@dataclass(frozen=True)
class Ruling:
    """The recommendation of the referee and what it rests on.

    Attributes:
        plain: The plain student's side.
        contenders: How the contenders did, in the order they were named.
        longer: The plain student with more steps, twice as many first; their bouts, called "steps",
            are with the plain runs of the usual length.
        seeds: The final seeds.
        metric: Name of the metric.
        higher_is_better: Which way is up.
        whole: Steps of the recipe's own run.
        budget: Seconds that were given.
        seconds: Seconds that were used.
        spent: Seconds of them that were gone before the race, for loading.
        most_sets: Sets of runs that were enough.
        scored: Examples that each set was scored on.
        mixed: Whether these were parts of the training part.
        plain_int8: What quantisation does to the plain student.
        notes: What a user should know, in sentences.
    """

    plain: Side
    contenders: tuple[Standing, ...]
    longer: tuple[Standing, ...]
    seeds: tuple[int, ...]
    metric: str
    higher_is_better: bool
    whole: int
    budget: float
    seconds: float
    spent: float
    most_sets: int
    scored: int
    mixed: bool
    plain_int8: Rounded | None = None
    notes: tuple[str, ...] = ()

    @property
    def bases(self) -> tuple[Basis, ...]:
        """What was raced."""
        return tuple(basis for basis in BASES if basis in self.contenders[0].bouts)

    @cached_property
    def corrected(self) -> dict[tuple[str, Basis], float]:
        """The p-values of all duels of contenders, by name and basis, after Holm's correction."""
        duels = {(s.name, b): m.duel for s in self.contenders for b, m in s.bouts.items()}
        return dict(zip(duels, holm([duel.p for duel in duels.values()]), strict=True))

    @cached_property
    def improving(self) -> Standing | None:
        """The longer plain run that is shown better than the plain one, the best of them."""
        duels = [standing.bouts["steps"].duel for standing in self.longer]
        ps = holm([duel.p for duel in duels])
        better = [
            standing
            for standing, duel, p in zip(self.longer, duels, ps, strict=True)
            if duel.shown(p) > 0
        ]
        return max(better, key=lambda standing: _mean(standing, "steps"), default=None)

    def shown(self, standing: Standing, basis: Basis) -> int:
        """1 where a contender is shown better, -1 worse, 0 neither."""
        if basis not in standing.bouts:
            return 0
        return standing.bouts[basis].duel.shown(self.corrected[standing.name, basis])

    @cached_property
    def decision(self) -> Decision:
        """What the duels allow to say."""
        by = next(basis for basis in _FIRST if basis in self.bases)
        if winners := self._shown(by, 1):
            return self._unless(self.plain, Decision("use", _best(winners, by), by))
        if self.improving is not None:
            return self._unless(self.plain, Decision("more-steps", self.improving, "steps"))
        saving = [s for s in self._shown("steps", 1) if self.shown(s, by) == 0]
        if saving:
            return self._unless(self.plain, Decision("use", _best(saving, "steps"), "steps"))
        ahead, worse = self.ahead(by), self._shown(by, -1)
        if len(worse) == len(self.contenders):
            untuned = next((s for s in worse if s.side.at_edge), ahead)
            return self._unless(untuned.side, Decision("do-not-use", ahead, by))
        return Decision("undecided" if self.diverged else "no-difference", ahead, by)

    @property
    def diverged(self) -> bool:
        """Whether every final run did, of the plain student and of the contenders."""
        duels = [bout.duel for s in self.contenders for bout in s.bouts.values()]
        return not any(score is not None for d in duels for score in (*d.ours, *d.theirs))

    def ahead(self, basis: Basis) -> Standing:
        """The contender that did best."""
        return _best(self.contenders, basis)

    @property
    def verdict(self) -> Verdict:
        """In a word."""
        return self.decision.verdict

    def _shown(self, basis: Basis, way: int) -> list[Standing]:
        return [s for s in self.contenders if self.shown(s, basis) == way]

    def _unless(self, loser: Side, decision: Decision) -> Decision:
        """The decision, unless who loses by it was not tuned."""
        if loser.at_edge:
            return Decision("undecided", decision.of, decision.by)
        return decision


def _best(standings: Sequence[Standing], basis: Basis) -> Standing:
    return max(standings, key=lambda standing: _mean(standing, basis))


def _mean(standing: Standing, basis: Basis) -> float:
    duel = standing.bouts[basis].duel
    found = duel.comparison
    # Without a seed on which neither diverged there is no mean, and wins say who is ahead.
    return found.mean if found is not None else math.inf if duel.direction > 0 else -math.inf
