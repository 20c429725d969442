"""One side's tuning: successive halving over learning rate and weight decay.

The over-parameterised side's methods (md, hyperball, ...) are one more choice of its search.

rung 1  short runs.   Scan the rates of each method, then the decays at its best rate.
rung 2  longer runs.  The best third of rung 1, and the rates between the best and its neighbours.
rung 3  whole runs.   The best third of rung 2, on one seed after the other until time is up; after
                      each seed the better half goes on, down to two.

In each rung, the best setting's neighbours are tried if no run has tried them: the grid grows until
the best lies inside. A rung ends when its share of the time is used, whatever it has left to try;
both sides have the same time. The choice is the best mean of those that are left in the last rung.

Source: Jamieson & Talwalkar, Non-stochastic Best Arm Identification (2016); the last rung's runs go
to seeds rather than to one longer run because a small student's noise lies between seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from opdf_compile.distill.advise.grid import (
    COARSE,
    DECAY_SCAN,
    FINE,
    RATE_SCAN,
    Grid,
    Point,
    decay_neighbours,
    is_end,
    rate_neighbours,
)
from opdf_compile.distill.advise.trainer import Score

# Where in a side's time each rung ends.
ENDS = (0.4, 0.65, 1.0)
_KEEP = 3
_FEWEST = 2


@dataclass(frozen=True)
class Trial:
    """A run that a search asks for.

    Attributes:
        point: The setting.
        rung: 0, 1 or 2.
        seed: Start weights and order; equal for both sides.
    """

    point: Point
    rung: int
    seed: int


@dataclass
class Search:
    """Asks for trials, is told their scores, and names the best setting.

    Attributes:
        methods: Names of the side's methods.
        grid: The settings.
        used: The share of the side's time that is spent; whoever runs the trials sets it.
        scores: What came of each rung's points, one score per seed.
    """

    methods: Sequence[str]
    grid: Grid
    used: float = 0.0
    scores: tuple[dict[Point, list[Score]], ...] = field(
        default_factory=lambda: tuple({} for _ in ENDS)
    )

    def __post_init__(self) -> None:
        """Start with the first rung."""
        self._asks = self._trials()
        self._pool: list[Point] = []

    def ask(self) -> Trial:
        """The next trial; there always is one."""
        return next(self._asks)

    def tell(self, trial: Trial, score: Score) -> None:
        """Take a trial's score."""
        self.scores[trial.rung].setdefault(trial.point, []).append(score)

    @property
    def best(self) -> Point:
        """The best setting of the last rung that has scores."""
        rung = max(r for r, scores in enumerate(self.scores) if scores)
        if rung < len(ENDS) - 1:
            return self.ranking(rung)[0]
        return self._ordered([p for p in self._pool if p in self.scores[rung]])[0]

    def at_edge(self, point: Point) -> bool:
        """Whether a better rate or decay may lie where nothing was tried."""
        return bool(self._missing(point)) or is_end(point)

    def ranking(self, rung: int, method: str | None = None) -> list[Point]:
        """A rung's points, the best first."""
        points = [p for p in self.scores[rung] if method in (None, p.method)]
        # The sort is stable: of equals, the one that was asked for first stays first.
        return sorted(points, key=lambda p: self.mean(rung, p), reverse=True)

    def mean(self, rung: int, point: Point) -> Score:
        """The mean score of a point in a rung."""
        return _mean(self.scores[rung][point])

    def _missing(self, point: Point, *, decays: bool = True) -> list[Point]:
        """Neighbours in whose place no rung has tried anything about the same."""
        tried = [p for scores in self.scores for p in scores if p.method == point.method]
        missing = [
            near
            for near in rate_neighbours(point)
            if not any(
                p.rate != point.rate
                and min(point.rate, near.rate) <= p.rate <= max(point.rate, near.rate)
                and abs(p.decay - point.decay) <= 1
                for p in tried
            )
        ]
        if not (decays and self.grid.decays):
            return missing
        around = {p.decay for p in tried if abs(p.rate - point.rate) <= COARSE}
        return missing + [p for p in decay_neighbours(point) if p.decay not in around]

    def _trials(self) -> Iterator[Trial]:
        for trial in self._scan():
            yield trial
            if self.used >= ENDS[0]:
                break
        for trial in self._middle():
            yield trial
            if self.used >= ENDS[1]:
                break
        yield from self._last()

    def _scan(self) -> Iterator[Trial]:
        for place, method in itertools.product(RATE_SCAN, self.methods):
            yield Trial(Point(method, place, self.grid.start), 0, 0)
        for method in self.methods:
            yield from self._beyond(0, 0, method, decays=False)
        scan = DECAY_SCAN if self.grid.decays else ()
        for place, method in itertools.product(scan, self.methods):
            point = Point(method, self.ranking(0, method)[0].rate, place)
            if point not in self.scores[0]:
                yield Trial(point, 0, 0)
        for method in self.methods:
            yield from self._beyond(0, 0, method)

    def _middle(self) -> Iterator[Trial]:
        kept = self._best_third(0)
        between = [n for point in kept[:1] for n in rate_neighbours(point, FINE)]
        for point in [*kept, *between]:
            yield Trial(point, 1, 1)
        yield from self._beyond(1, 1, None)

    def _last(self) -> Iterator[Trial]:
        # A rung that had no time left promotes what the one before it found.
        self._pool = self._best_third(1 if self.scores[1] else 0)
        for point in self._pool:
            yield Trial(point, 2, 2)
        for trial in self._beyond(2, 2, None):
            self._pool.append(trial.point)
            yield trial
        for seed in itertools.count(3):
            half = math.ceil(len(self._pool) / 2)
            self._pool = self._ordered(self._pool)[: max(_FEWEST, half)]
            for point in self._pool:
                yield Trial(point, 2, seed)

    def _ordered(self, points: list[Point]) -> list[Point]:
        """Points of the last rung, the best first, by the seeds that all of them have."""
        scores = self.scores[-1]
        common = min(len(scores[point]) for point in points)
        return sorted(points, key=lambda p: _mean(scores[p][:common]), reverse=True)

    def _best_third(self, rung: int) -> list[Point]:
        ranked = self.ranking(rung)
        return ranked[: max(_FEWEST, math.ceil(len(ranked) / _KEEP))]

    def _beyond(
        self, rung: int, seed: int, method: str | None, *, decays: bool = True
    ) -> Iterator[Trial]:
        """What is missing around a rung's best, until nothing is."""
        while missing := self._missing(self.ranking(rung, method)[0], decays=decays):
            for point in missing:
                yield Trial(point, rung, seed)


def _mean(scores: Sequence[Score]) -> Score:
    return Score(fmean(s.value for s in scores), fmean(s.tie for s in scores))
