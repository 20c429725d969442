"""The ways to train that race: the plain student, and the student over-parameterised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from opdf_compile.distill.engine import Batches, machine_for
from opdf_compile.distill.recipe import Job
from opdf_compile.graph import Phase, Traced, trace
from opdf_compile.planning import Plan
from opdf_compile.planning import plan as choose_plan

PLAIN = "plain"
# What ended above tuned plain training anywhere (docs/evidence.md); the first also where that had
# all the steps it could use. Chains did not, and race where a recipe asks for them.
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

    They are the plain student, `PROPOSED`, the recipe's plan where that is something else (the
    default plan where it asks for nothing), and the recipe's plan with alignment where the recipe
    has one.

    Raises:
        UserError: The student cannot be traced, or has no weight that can be planned.
    """
    student, asked = student_of(job), job.recipe.plan
    traced = traced_student(job, student)
    made = [plain_entrant(job)]
    globs = asked.model_dump(include={"include", "exclude"}, exclude_defaults=True)
    without = left_out(job, plain=False)
    for name in PROPOSED:
        plan = choose_plan(
            traced, include=asked.include, exclude=asked.exclude, parametrization=name
        )
        lines = {"enabled": True, "parametrization": name, **globs}
        made.append(Entrant(name, plan, lines=lines, without=without))
    own = job.plan(student) if asked.enabled else None
    # Cores that are pulled towards a teacher's are as many for every weight.
    only_aligned = asked.by_default and job.alignment is not None
    if own is not None and not only_aligned and not _is_among(own, made):
        made.append(Entrant("the recipe's plan", own, without=without))
    if own is not None and job.alignment is not None:
        made.append(Entrant("the recipe's plan, aligned", own, aligned=True))
    return tuple(made)


def _is_among(plan: Plan, others: Sequence[Entrant]) -> bool:
    return any(other.plan and other.plan.entries == plan.entries for other in others)


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
    beside = replace(machine_for(job.recipe.training), device=torch.device("cpu"))
    batch = Batches(job.data, beside).moved(job.example)
    args, kwargs = job.data.arguments(batch)
    return trace(student, args, kwargs, phases=phases)


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
