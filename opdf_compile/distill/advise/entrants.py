"""The ways to train that race: the plain student, and the student over-parameterised."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from opdf_compile.distill.engine import Batches, machine_for
from opdf_compile.distill.recipe import Job, make_plan
from opdf_compile.errors import UserError
from opdf_compile.graph import Phase, Traced, deep_copy, trace
from opdf_compile.planning import Plan
from opdf_compile.planning import plan as choose_plan

_LOG = logging.getLogger("opdf_compile")
PLAIN = "plain"
# In study 2 they ended above tuned plain training on some tasks, at little cost (docs/evidence.md).
# Chains race where a recipe asks for them, or names nothing.
PROPOSED = ("md", "hyperball")


@dataclass(frozen=True, eq=False)
class Entrant:
    """One way to train the student.

    Attributes:
        name: As tables print it: "plain", "md", "the recipe's plan".
        plan: How its weights are over-parameterised; None for the plain student.
        aligned: Whether its cores are pulled towards the teacher's.
        lines: The recipe's section `plan` that asks for it; empty where that stays as it is.
        without: What the recipe has and this does not: "[alignment]", "decay in [optimizer]".
        optimizer: Makes its optimizer, as `Job.optimizer` does; None where that one does.
    """

    name: str
    plan: Plan | None
    aligned: bool = False
    lines: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    optimizer: Callable[..., Optimizer] | None = None


def entrants(job: Job) -> tuple[Entrant, ...]:
    """The methods that race for a job; the first is plain.

    They are the plain student, `PROPOSED` (one that the student or the optimizer does not take is
    left out, with a warning), the recipe's plan where that is something else (the default plan
    where it asks for nothing), and the recipe's plan with alignment where the recipe has one.

    Raises:
        UserError: The student cannot be traced, or has no weight that can be planned.
    """
    student, asked = student_of(job), job.recipe.plan
    traced = traced_student(job, student)
    without = left_out(job, plain=False)
    own = job.plan(student) if asked.enabled else None
    made = [plain_entrant(job), *_proposed(job, student, traced, alone=own is None)]
    # Cores that are pulled towards a teacher's are as many for every weight.
    only_aligned = asked.by_default and job.alignment is not None
    if own is not None and not only_aligned:
        # Modes that fit student and teacher are not those of the recipe without its alignment.
        plan = own if job.alignment is None else _without_alignment(job, student)
        if not _is_among(plan, made):
            made.append(Entrant("the recipe's plan", plan, without=without))
    if own is not None and job.alignment is not None:
        made.append(Entrant("the recipe's plan, aligned", own, aligned=True))
    return tuple(made)


def _proposed(job: Job, student: nn.Module, traced: Traced, *, alone: bool) -> list[Entrant]:
    """`PROPOSED`, but for what the student or the recipe's optimizer does not take.

    Args:
        job: The prepared recipe.
        student: Its student.
        traced: The student's graphs.
        alone: Whether nothing else races against plain.

    Raises:
        UserError: None is left, and they are alone.
    """
    made: list[Entrant] = []
    asked, rates = job.recipe.plan, job.recipe.optimizer
    for name in PROPOSED:
        try:
            plan = choose_plan(
                traced, include=asked.include, exclude=asked.exclude, parametrization=name
            )
            # A copy: whatever an optimizer does to its student, this one is planned for again.
            tried = deep_copy(student)
            job.optimizer(tried, plan, lr=rates.lr, weight_decay=rates.weight_decay)
        except UserError as error:
            if alone and name == PROPOSED[-1] and not made:
                raise
            _LOG.warning("%s does not race: %s", name, error)
            continue
        lines, without = lines_for(job, name), left_out(job, plain=False)
        made.append(Entrant(name, plan, lines=lines, without=without))
    return made


def _without_alignment(job: Job, student: nn.Module) -> Plan:
    """The plan that the recipe has without its section `alignment`."""
    recipe = job.recipe.model_copy(update={"alignment": None})
    return make_plan(recipe, student, _arguments(job), None, None)


def _is_among(plan: Plan, others: Sequence[Entrant]) -> bool:
    return any(
        o.plan and (o.plan.entries, o.plan.sites) == (plan.entries, plan.sites) for o in others
    )


def plain_entrant(job: Job) -> Entrant:
    """The plain student of a job."""
    return Entrant(PLAIN, None, lines={"enabled": False}, without=left_out(job, plain=True))


def student_of(job: Job) -> nn.Module:
    """A student of a job to make plans for, in the recipe's precision."""
    return machine_for(job.recipe.training).widened(job.make_student(0))


def traced_student(job: Job, student: nn.Module, phases: tuple[Phase, ...] = ("train",)) -> Traced:
    """A student's graphs, traced on the CPU; a plan made of them fits on every device.

    Raises:
        UserError: It cannot be traced.
    """
    args, kwargs = _arguments(job)
    return trace(student, args, kwargs, phases=phases)


def _arguments(job: Job) -> tuple[tuple[Any, ...], dict[str, Any]]:
    beside = replace(machine_for(job.recipe.training), device=torch.device("cpu"))
    return job.data.arguments(Batches(job.data, beside).moved(job.example))


def lines_for(job: Job, request: str) -> dict[str, Any]:
    """The section `plan` that asks for a parametrization; the recipe's globs stay."""
    globs = job.recipe.plan.model_dump(include={"include", "exclude"}, exclude_defaults=True)
    return {"enabled": True, "parametrization": request, **globs}


def left_out(job: Job, *, plain: bool) -> tuple[str, ...]:
    """What a recipe has to lose before it trains a method without alignment."""
    recipe = job.recipe
    maps = "layer_map" in recipe.student.model_fields_set and not recipe.student.warm_start
    found = {
        "[alignment]": recipe.alignment is not None,
        # Only alignment and warm start read the map, and a key that nothing reads is refused.
        "layer_map in [student]": recipe.alignment is not None and maps,
        "decay in [optimizer]": plain and recipe.optimizer.decay == "cores",
    }
    return tuple(name for name, given in found.items() if given)
