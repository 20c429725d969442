"""The training engine: one optimizer step, and what it needs, for every loop over it.

student = machine.widened(job.make_student(seed))
setup = set_up(job, machine, student, job.plan(student), seed=seed)
step = TrainingStep(setup, Teaching(job, machine.teacher(job.teacher), machine))
for number in range(setup.steps):
    step(number)
student = setup.deployed()
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
