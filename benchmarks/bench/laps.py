"""The laps of one student's forms: what is built for them, and who runs them.

The steps of this build run in this process or in a worker of their own (builds.py); those of
another build always in a worker, which makes them with this module: it uses of opdf_compile what
every build has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch

import opdf_compile as opdf
from bench import students
from bench.clock import Clock, repeats
from bench.forms import OPTIONS, Form, Lap, Source, build, planned


@dataclass(frozen=True)
class Setting:
    """What laps are run with; it travels to a worker as JSON.

    Attributes:
        model: The student.
        forms: The forms, plain first.
        cores: Cores per weight; what the student usually has if None.
        default_plan: The plan that `opdf.plan` makes if it is asked for nothing.
        traced: Whether the student is planned by its graphs, or else by its modules: a thousand
            layers take a minute to trace. The inline form is made of graphs.
        fused: The fused variant of the optimizer.
        seed: Fixes the student.
        device: "cpu" or "cuda".
        clock: "wall" or "cpu".
        threads: Threads of torch; as many as it takes by itself if None.
    """

    model: str
    forms: tuple[str, ...]
    cores: int | None = None
    default_plan: bool = False
    traced: bool = True
    fused: bool = False
    seed: int = 0
    device: str = "cpu"
    clock: Literal["wall", "cpu"] = "wall"
    threads: int | None = None

    @property
    def timer(self) -> Clock:
        """The clock of the laps."""
        return Clock(torch.device(self.device), self.clock)

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """Of every form's optimizer."""
        return OPTIONS | ({"fused": True} if self.fused else {})

    def planned(self) -> tuple[students.Student, Source, opdf.Plan]:
        """The student, what is planned of it, and the plan."""
        student = students.student(self.model, torch.device(self.device), self.seed)
        if self.default_plan:
            student = replace(student, cores=None)
        if not self.traced:
            cores = student.cores if self.cores is None else self.cores
            return student, student.model, opdf.plan(student.model, cores=cores)
        return student, *planned(student, self.cores)


class Laps(Protocol):
    """Runs steps of one student and times them."""

    def lap(self, form: str, accumulation: int) -> Lap:
        """A step of a form, in so many micro-batches; a short one is repeated, for the mean."""
        ...


class OwnLaps:
    """Laps in this process.

    Attributes:
        plan: What is over-parameterised.
        forms: By name, warmed up.
    """

    def __init__(
        self, setting: Setting, student: students.Student, source: Source, plan: opdf.Plan
    ) -> None:
        """Build the forms and warm them up."""
        self.plan, self._clock = plan, setting.timer
        options = setting.optimizer_options
        self.forms = {name: build(name, student, source, plan, options) for name in setting.forms}
        self._single = {name: self._warm(form) for name, form in self.forms.items()}

    def lap(self, form: str, accumulation: int) -> Lap:
        """See `Laps`."""
        steps = repeats(self._single[form] * accumulation)
        return self.forms[form].lap(accumulation, self._clock, steps)

    def _warm(self, form: Form) -> float:
        # The second step finds the optimizer's state and the kept graphs in place.
        form.step(1)
        form.step(1)
        return form.lap(1, self._clock).seconds
