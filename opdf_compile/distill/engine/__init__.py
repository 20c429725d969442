"""The training engine: one optimizer step, and what it needs, for every loop over it.

student = machine.widened(job.make_student(seed))
setup = build(job, machine, student, job.plan(student), seed=seed)
step = Step(setup, Teaching(job, machine.teacher(job.teacher), machine))
for number in range(setup.steps):
    step(number)
student = setup.deployed()
"""

from __future__ import annotations

from opdf_compile.distill.engine.batches import Batches
from opdf_compile.distill.engine.evaluation import Evaluation, evaluating
from opdf_compile.distill.engine.fitting import fit, take_all
from opdf_compile.distill.engine.machine import Machine, machine_for
from opdf_compile.distill.engine.setup import Setup, build, whole_run
from opdf_compile.distill.engine.step import Processes, Step
from opdf_compile.distill.engine.teaching import Remembered, Teaching, joined, names_read

__all__ = [
    "Batches",
    "Evaluation",
    "Machine",
    "Processes",
    "Remembered",
    "Setup",
    "Step",
    "Teaching",
    "build",
    "evaluating",
    "fit",
    "joined",
    "machine_for",
    "names_read",
    "take_all",
    "whole_run",
]
