"""What is asked of the study, in the order in which it is run.

A stage is a set of groups; a stop leaves the stages before it whole. A group is one task, student
and loss at one length, whose methods are tuned side by side and get the same number of trials.

    fixed       the task's own steps for every method
    time        plain gets the time of the method's run: steps method's cost / plain's cost
    saturated   the steps at which plain has stopped improving, for every method
"""

from __future__ import annotations

from dataclasses import dataclass

from quality.second.methods import METHODS

# Filled from development data; see PROTOCOL.md.
PRIMARY = "md"
_ALL = tuple(method.name for method in METHODS)
REGIMES = ("fixed", "time", "saturated")


@dataclass(frozen=True)
class Stage:
    """Groups of equal importance.

    Attributes:
        student: Name of the student.
        loss: "labels" or "distil".
        regime: One of `REGIMES`.
        methods: Names; plain is among them.
        times: How many times the size's fresh seeds it has.
        more: Trials beyond the size's most, while one's best is at an edge.
    """

    student: str
    loss: str
    regime: str
    methods: tuple[str, ...]
    times: int = 1
    more: int = 0


@dataclass(frozen=True)
class Size:
    """How much a study spends.

    Attributes:
        trials: Of every method.
        most_trials: Up to so many, for all methods of a group, while one's best is at an edge.
        tuning_seeds: Seeds of a trial.
        seeds: Fresh seeds of the runs that count.
        after: Numbers of trials after which the best so far is run, too.
        doublings: Of the steps, at most, until plain stops improving.
        steps: Length of a run instead of the tasks' own; 0 is theirs.
    """

    trials: int = 16
    most_trials: int = 32
    tuning_seeds: int = 4
    seeds: int = 24
    after: tuple[int, ...] = (4, 8, 16)
    doublings: int = 4
    steps: int = 0


SIZES = {
    "full": Size(),
    "development": Size(8, 12, 2, 12, (), 2),
    "tiny": Size(3, 4, 1, 2, (2, 3), 1, steps=6),
}

CONFIRMATION = (
    Stage("deep", "distil", "fixed", ("plain", PRIMARY), times=3),
    Stage("deep", "distil", "time", ("plain", PRIMARY)),
    Stage("deep", "distil", "saturated", ("plain", PRIMARY)),
    Stage("deep", "distil", "fixed", _ALL),
    Stage("deep", "distil", "time", _ALL),
    Stage("deep", "labels", "fixed", _ALL),
    Stage("deep-skip", "distil", "fixed", _ALL),
    Stage("shallow", "distil", "fixed", _ALL),
    Stage("deep", "labels", "time", _ALL),
    Stage("deep", "labels", "saturated", ("plain", PRIMARY)),
    Stage("minilm-3", "distil", "fixed", _ALL),
)
DEVELOPMENT = (
    Stage("deep", "distil", "fixed", ("plain", "md"), more=10),
    Stage("deep", "distil", "fixed", ("plain", "repvgg")),
    Stage("deep", "distil", "fixed", ("plain", "repvgg", "md", "hyperball")),
    Stage("deep", "distil", "fixed", ("plain", "gains", "ham", "ham-decay")),
    Stage("deep", "distil", "time", ("plain", "repvgg")),
    Stage("deep", "labels", "fixed", ("plain", "repvgg")),
    Stage("deep", "distil", "fixed", _ALL),
)
