"""The ways to train that race: the plain student, and the student over-parameterised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from opdf_compile.distill.recipe.job import Job
from opdf_compile.graph.trace import trace
from opdf_compile.plan.choose import plan as choose_plan
from opdf_compile.plan.value import Plan

PLAIN = "plain"
CORES = (2, 3)


@dataclass(frozen=True, eq=False)
class Method:
    """One way to train the student.

    Attributes:
        name: As tables print it: "plain", "n = 2".
        plan: How its weights are over-parameterised; None for the plain student.
        aligned: Whether its cores are pulled towards the teacher's.
        lines: The keys of the recipe's section `plan` that ask for it.
    """

    name: str
    plan: Plan | None
    aligned: bool = False
    lines: dict[str, Any] = field(default_factory=dict)


def methods(job: Job) -> tuple[Method, ...]:
    """The methods that race for a job; the first is plain.

    They are the plain student, 2 and 3 cores per weight, what the recipe asks for where that is
    something else, and the recipe's plan with alignment where the recipe has one.

    Raises:
        UserError: The student cannot be traced, or has no weight that can be planned.
    """
    student, asked = job.make_student(0), job.recipe.plan
    args, kwargs = job.data.arguments(job.example)
    traced = trace(student, args, kwargs)
    made = [Method(PLAIN, None, lines={"enabled": False})]
    for cores in CORES:
        plan = choose_plan(traced, cores=cores, include=asked.include, exclude=asked.exclude)
        lines = {"enabled": True, "parametrization": "mpo", "cores": cores}
        made.append(Method(f"n = {cores}", plan, lines=lines))
    usual = asked.parametrization == "mpo" and asked.cores in (None, *CORES)
    sized = asked.scale is not None or asked.overhead is not None
    if asked.enabled and (not usual or sized):
        made.append(Method("as in the recipe", job.plan(student)))
    if asked.enabled and job.alignment is not None:
        made.append(Method("as in the recipe, aligned", job.plan(student), aligned=True))
    return tuple(made)
