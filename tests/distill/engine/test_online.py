"""A step with modules in the teacher: who learns from what, and that a killed run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from opdf_compile.distill.engine import Setup, Teaching, TrainingStep, machine_for, set_up
from opdf_compile.distill.recipe import Job
from opdf_compile.distill.run import run
from opdf_compile.distill.run.events import Stepped

Make = Callable[..., Job]
ONLINE = {
    "student": "student",
    "options": "momentum = 0.0\\n[online]\\nrank = 2\\nlr = 0.3\\ntask = 0.7\\nanchor = 0.4",
    "optimizer": "SGD",
    "rate": "0.1",
}
SCHEDULE = '\\n[schedule]\\nkind = "constant"\\nwarmup = 0'
DOUBLE = 'steps = 2\\nprecision = "fp64"' + SCHEDULE


class Killed(BaseException):
    """Ends a run where it is raised; nothing of ours catches it."""


def built(job: Job) -> tuple[Setup, Teaching]:
    """As a run builds it, in float64."""
    machine = machine_for(job.recipe.training)
    student = machine.widened(job.make_student(0))
    setup = set_up(job, machine, student, None, seed=0)
    return setup, Teaching(job, machine.teacher(job.teacher), machine)


def logarithms(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1)


def test_a_step_is_the_gradient_of_both_objectives(make: Make) -> None:
    """By hand: the student follows the answer with paths, the paths the labels and the teacher."""
    setup, teaching = built(make(**ONLINE, training=DOUBLE))
    step = TrainingStep(setup, teaching)
    step(0)  # The paths begin at zero, so that the second step tells more.
    student, online, teacher = setup.student, setup.online, teaching.teacher
    assert online is not None and teacher is not None
    (places,) = setup.order.batches(1)
    batch = setup.batches.of(setup.job.data.train, places)
    x, labels, counts = batch["x"], batch["labels"], batch["mask"] != 0
    parameters, factors = list(student.parameters()), list(online.parameters())
    before = [p.detach().clone() for p in (*parameters, *factors)]
    q, p_on, p = student(x), online(x), teacher(x)
    soft = F.kl_div(
        logarithms(q / 4), logarithms(p_on.detach() / 4), log_target=True, reduction="none"
    )
    follow = 16 * soft.sum(-1)[counts].mean() + 0.5 * F.cross_entropy(q, labels)
    near = (logarithms(p_on).exp() * (logarithms(p_on) - logarithms(p))).sum(-1)[counts].mean()
    learn = 0.7 * F.cross_entropy(p_on, labels) + 0.4 * near
    ours = torch.autograd.grad(follow, parameters)
    theirs = torch.autograd.grad(learn, factors)

    step(1)

    wanted = [
        value - rate * grad
        for value, grad, rate in zip(
            before, (*ours, *theirs), [0.1] * len(ours) + [0.3] * len(theirs), strict=True
        )
    ]
    for found, value in zip((*parameters, *factors), wanted, strict=True):
        torch.testing.assert_close(found.detach(), value, rtol=1e-12, atol=1e-12)
    assert all(bool(grad.abs().max() > 1e-6) for grad in theirs)


def test_the_teacher_s_own_weights_stay(make: Make) -> None:
    """Bit for bit, and the cached answers are those without paths."""
    job = make(**ONLINE, training=DOUBLE)
    setup, teaching = built(job)
    assert teaching.teacher is not None
    before = {name: tensor.clone() for name, tensor in teaching.teacher.state_dict().items()}
    step = TrainingStep(setup, teaching)
    for number in range(2):
        step(number)
    after = teaching.teacher.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("cache", ["false", "true"])
def test_three_interruptions_leave_the_bits_alone(
    cache: str, make: Make, tmp_path: Path, outcome: Callable[[Path], dict[str, Any]]
) -> None:
    """The paths and their optimizer are in the checkpoint."""
    given = {**ONLINE, "optimizer": "AdamW", "options": "[online]\\nrank = 2", "cache": cache}
    training = "epochs = 2\\ncheckpoint_every = 3\\nclip = 0.5"
    run(make(**given, training=training), tmp_path / "whole")
    for number in (2, 5, 7):

        def watch(event: object, number: int = number) -> None:
            if isinstance(event, Stepped) and event.step == number:
                raise Killed

        with pytest.raises(Killed):
            run(make(**given, training=training), tmp_path / "parts", watch=watch)
    run(make(**given, training=training), tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    checkpoint = max((tmp_path / "whole" / "checkpoints").glob("step-*"))
    assert any(b"online/paths.first/weight.0" in file.read_bytes() for file in checkpoint.iterdir())
