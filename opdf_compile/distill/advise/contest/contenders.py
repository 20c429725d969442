"""What contenders are called, and what they stand for.

    contender  =  part  |  part + part  |  either of them @Kx      gains    gains+muon    plain@2x
    part       =  plain, recipe, a parametrization (with options in brackets), or an optimizer

`recipe` is the recipe's own [plan], aligned if it has [alignment]. `@Kx` takes K times the steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from opdf_compile.distill.advise.entrants import (
    PLAIN,
    Entrant,
    left_out,
    lines_for,
    plain_entrant,
    student_of,
    traced_student,
)
from opdf_compile.distill.recipe import Job, OptimizerSection, make_optimizer
from opdf_compile.errors import InputError, UserError
from opdf_compile.graph import PHASES, Traced
from opdf_compile.parametrizations import branch_forms, registered_names, requested
from opdf_compile.planning import Plan
from opdf_compile.planning import plan as choose_plan
from opdf_compile.spelling import did_you_mean

RECIPE = "recipe"
# A class, the rate that its search starts at, and options of it.
_OPTIMIZERS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "adamw": ("AdamW", 1e-3, {}),
    "sgd": ("SGD", 0.1, {"momentum": 0.9, "nesterov": True}),
    "muon": ("MuonAdamW", 1e-3, {}),
}
_OUTSIDE_BRACKETS = r"(?![^()]*\))"
_LONGER = re.compile(r"(.*)@(\d+(?:\.\d+)?)x")


@dataclass(frozen=True)
class Contender:
    """A way to train, by its name.

    Attributes:
        name: As tables print it.
        method: What its weights become: "plain", "recipe", or a request for a parametrization.
        optimizer: "adamw", "sgd" or "muon"; None for the recipe's.
        times: Its steps over the plain student's.
    """

    name: str
    method: str = PLAIN
    optimizer: str | None = None
    times: float = 1.0

    @property
    def longer(self) -> bool:
        """Whether it is the plain student with more steps and nothing else."""
        return self.method == PLAIN and self.optimizer is None and self.times != 1


def parse_contenders(text: str) -> tuple[Contender, ...]:
    """The contenders that a list names, plain left out: it always races.

    Raises:
        InputError: One is not known, stands there twice, or none is left.

    Example:
        >>> [c.name for c in parse_contenders("plain,gains,gains+muon")]
        ['gains', 'gains+muon']
    """
    names = [name.strip() for name in re.split(rf",{_OUTSIDE_BRACKETS}", text)]
    found = [_parsed(name) for name in names if name]
    for contender in found:
        if sum(other == contender for other in found) > 1:
            raise InputError(
                f"the contender {contender.name} stands twice in {text!r}, wanted each once; "
                "remove one"
            )
    rivals = tuple(contender for contender in found if contender != Contender(PLAIN))
    if not rivals:
        raise InputError(
            f"the contenders are {text!r}, wanted at least one beside plain; name some, such as "
            "--contenders plain,gains,muon"
        )
    return rivals


def _parsed(name: str) -> Contender:
    longer = _LONGER.fullmatch(name)
    parts = [
        part.strip() for part in re.split(rf"\+{_OUTSIDE_BRACKETS}", longer[1] if longer else name)
    ]
    times = float(longer[2]) if longer else 1.0
    for part in parts:
        _require_known(part)
    methods = [part for part in parts if part not in _OPTIMIZERS]
    optimizers = [part for part in parts if part in _OPTIMIZERS]
    if len(methods) > 1 or len(optimizers) > 1:
        raise InputError(
            f"the contender {name} joins {' and '.join(parts)}, wanted at most one parametrization "
            "and one optimizer; give them as contenders of their own"
        )
    method = methods[0] if methods else PLAIN
    optimizer = optimizers[0] if optimizers else None
    if not 0 < times < math.inf or (method == PLAIN and not optimizer and times < 1):
        raise InputError(
            f"the contender {name} has {times:g} times the steps, wanted a number above 0, and "
            "above 1 for plain; write plain@2x"
        )
    core = "+".join(part for part in parts if part != PLAIN or len(parts) == 1)
    return Contender(core if times == 1 else f"{core}@{times:g}x", method, optimizer, times)


def _require_known(part: str) -> None:
    known = [PLAIN, RECIPE, *_OPTIMIZERS, *registered_names(), *branch_forms()]
    if part.partition("(")[0].strip() not in known:
        raise InputError(
            f"the contender {part!r} is not known{did_you_mean(part, known)}, wanted some of "
            f"{', '.join(known)}, joined by + (gains+muon), with more steps by @ (plain@2x)"
        )


@dataclass(eq=False)
class Resolver:
    """Makes of contenders what trains: the one place that knows how each is built.

    Attributes:
        job: The prepared recipe.
    """

    job: Job

    def entrant(self, contender: Contender) -> Entrant:
        """How a contender's student and optimizer are made.

        Raises:
            InputError: It does not fit the recipe or its student.
        """
        optimizer = self._maker(contender)
        name, job = contender.name, self.job
        if contender.method == PLAIN:
            plain = plain_entrant(job)
            return Entrant(
                name, None, lines=plain.lines, without=plain.without, optimizer=optimizer
            )
        without = left_out(job, plain=False)
        if contender.method == RECIPE:
            plan, aligned = self._asked_for(), job.alignment is not None
            without = () if aligned else without
            return Entrant(name, plan, aligned, without=without, optimizer=optimizer)
        plan, lines = self._planned(contender.method), lines_for(job, contender.method)
        return Entrant(name, plan, lines=lines, without=without, optimizer=optimizer)

    def section(self, contender: Contender) -> OptimizerSection:
        """A contender's section `optimizer`, with the rate that its search starts at."""
        own = self.job.recipe.optimizer
        if contender.optimizer is None:
            return own
        kind, lr, options = _OPTIMIZERS[contender.optimizer]
        if kind == own.name:
            return own
        return OptimizerSection(
            name=kind,
            lr=lr,
            weight_decay=own.weight_decay,
            decay=own.decay,
            no_decay=own.no_decay,
            **options,
        )

    def _maker(self, contender: Contender) -> Callable[..., Optimizer] | None:
        own, section = self.job.recipe.optimizer, self.section(contender)
        if section is not own:
            asked = self.job.recipe.model_copy(update={"optimizer": section})
            return partial(make_optimizer, asked)
        if contender.optimizer is not None and contender.method == PLAIN and contender.times == 1:
            raise InputError(
                f"the contender {contender.name} is the recipe's own optimizer {own.name}, which "
                "is what plain trains with; leave it out"
            )
        return None

    def _asked_for(self) -> Plan:
        plan = self.job.plan(self._student)
        if plan is None:
            raise InputError(
                "the contender recipe is the recipe's [plan], which has enabled = false, wanted a "
                "plan; set enabled = true, or leave the contender out"
            )
        return plan

    def _planned(self, request: str) -> Plan:
        asked = self.job.recipe.plan
        try:
            # Branches fold only where both phases have the site; cores need no more than one.
            branches = requested(request).name in branch_forms()
            return choose_plan(
                self._traced_whole if branches else self._traced,
                include=asked.include,
                exclude=asked.exclude,
                parametrization=request,
            )
        except UserError as error:
            raise InputError(f"the contender {request}: {error}") from error

    @cached_property
    def _student(self) -> nn.Module:
        return student_of(self.job)

    @cached_property
    def _traced(self) -> Traced:
        return traced_student(self.job, self._student)

    @cached_property
    def _traced_whole(self) -> Traced:
        return traced_student(self.job, self._student, phases=PHASES)


def longer_plain(contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    """The plain student with more steps: twice as many, and what else was asked for."""
    asked = [contender for contender in contenders if contender.longer]
    return tuple(dict.fromkeys((Contender(f"{PLAIN}@2x", times=2.0), *asked)))
