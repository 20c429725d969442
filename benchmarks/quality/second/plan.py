"""What is asked of the study, in the order in which it is run.

A stage is a set of groups; a stop leaves the stages before it whole. A group is one task, student
and loss at one length, whose methods are tuned side by side and get the same number of trials.

    fixed       the task's own steps for every method
    time        plain gets the time of the method's run: steps method's cost / plain's cost
    saturated   the steps at which plain has stopped improving, for every method
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quality.second.methods import METHODS
from quality.second.tasks import CONFIRMATION as TASKS
from quality.second.tasks import DEVELOPMENT as DEVELOPMENT_TASKS
from quality.second.tasks import TEXT, TEXT_STUDENT

# Chosen from development data; see PROTOCOL.md.
PRIMARY = "md"
REGIMES = ("fixed", "time", "saturated")
_ALL = tuple(method.name for method in METHODS)
_PAIR, _NORM = ("plain", PRIMARY), ("plain", "hyperball")
_FEW = ("plain", PRIMARY, "hyperball", "repvgg")
# One of each kind: images, noisy signals, recordings.
_THREE = ("glyphs-greek", "mnist1d-harder", "JapaneseVowels")


@dataclass(frozen=True)
class Size:
    """How much a stage spends.

    Attributes:
        trials: Of every method.
        most_trials: Up to so many, for all methods of a group, while one's best is at an edge.
        tuning_seeds: Seeds of a trial.
        seeds: Fresh seeds of the runs that count.
        after: Numbers of trials after which the best so far is run, too.
        after_seeds: Fresh seeds of those.
        doublings: Of the steps, at most, until plain stops improving.
        steps: Length of a run instead of the tasks' own; 0 is theirs.
    """

    trials: int = 16
    most_trials: int = 32
    tuning_seeds: int = 4
    seeds: int = 24
    after: tuple[int, ...] = ()
    after_seeds: int = 24
    doublings: int = 0
    steps: int = 0


_AFTER = (4, 8, 16)
FULL = Size()
DECIDING = replace(FULL, seeds=48, after=_AFTER)
# Secondary: what is found there is thinner, and says so.
EXPLORING = Size(12, 16, 3, 16)
LONG = Size(9, 12, 2, 16, doublings=4)
TEXT_SIZE = Size(9, 9, 2, 8)
DEVELOPING = Size(8, 12, 2, 12)
# To see that all of it works.
TINY = Size(3, 4, 1, 2, (2, 3), 2, 1, steps=6)


@dataclass(frozen=True)
class Stage:
    """Groups of equal importance.

    Attributes:
        student: Name of the student.
        loss: "labels" or "distil".
        regime: One of `REGIMES`.
        methods: Names; plain is among them.
        size: What it spends.
        tasks: Their names.
    """

    student: str
    loss: str
    regime: str
    methods: tuple[str, ...]
    size: Size
    tasks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.student} {self.loss} {self.regime}"

    def of(self, tasks: Sequence[str], *, tiny: bool = False) -> Stage:
        """On some of its tasks; `tiny` only shows that it runs."""
        kept = tuple(task for task in self.tasks if task in tasks)
        return replace(self, tasks=kept, size=TINY if tiny else self.size)


CONFIRMATION = (
    Stage("deep", "distil", "fixed", _PAIR, DECIDING, TASKS),
    Stage("deep", "distil", "time", _PAIR, FULL, TASKS),
    Stage("deep", "distil", "fixed", _NORM, replace(FULL, after=_AFTER), TASKS),
    Stage("deep", "distil", "saturated", _PAIR, LONG, _THREE),
    Stage("deep", "distil", "fixed", _ALL, EXPLORING, _THREE),
    Stage("deep", "distil", "time", _NORM, EXPLORING, _THREE),
    Stage("deep", "labels", "fixed", _FEW, EXPLORING, _THREE),
    Stage("deep-skip", "distil", "fixed", _FEW, EXPLORING, _THREE),
    Stage("shallow", "distil", "fixed", _FEW, EXPLORING, _THREE),
    Stage(TEXT_STUDENT, "distil", "fixed", (*_PAIR, "hyperball"), TEXT_SIZE, (TEXT,)),
)
DEVELOPMENT = (
    Stage("deep", "distil", "fixed", _PAIR, replace(DEVELOPING, most_trials=22), DEVELOPMENT_TASKS),
    Stage("deep", "distil", "fixed", ("plain", "repvgg"), Size(16, 16), DEVELOPMENT_TASKS),
    Stage("deep", "distil", "fixed", _NORM, DEVELOPING, DEVELOPMENT_TASKS),
    Stage("deep", "distil", "time", _PAIR, DEVELOPING, DEVELOPMENT_TASKS),
)
