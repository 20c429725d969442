"""What int8 costs a trained student, on the examples of its run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted_jobs import Rows, job
from torch import nn

from opdf_compile.distill.advise import referee
from opdf_compile.distill.advise.contest.int8 import Rounding, calibration
from opdf_compile.distill.engine import Batches, Teaching, machine_for, set_up
from opdf_compile.distill.recipe import Job


def shown(given: Job, student: nn.Module) -> tuple[float, float]:
    """Its error before and after int8."""
    machine = machine_for(given.recipe.training)
    setup = set_up(given, machine, student, None, seed=0, lr=0.1, weight_decay=0.0)
    rounding = Rounding()
    rounding.measure(3, setup, Teaching(given, None, machine))
    found = rounding.of(3)
    assert found is not None and rounding.of(0) is None
    return found.before[0], found.after[0]


def solved(given: Job) -> nn.Module:
    """The student of the least norm that fits the training part."""
    rows = given.data.train
    assert isinstance(rows, Rows)
    student = given.make_student(0)
    weight = (torch.linalg.pinv(rows.inputs) @ rows.labels).T.contiguous()
    student.weight = nn.Parameter(weight)
    return student


def test_int8_adds_an_error_of_its_steps() -> None:
    """64 products of a weight and an input, each rounded to 1 of 255 steps of its range.

    Uniform rounding has a variance of step^2 / 12: with W of norm 1, |w| <= w_max and inputs of
    variance 1 and range r, the error's is about (w_max / 127)^2 64 / 12 + (r / 255)^2 / 12. Labels
    add their own rounding; ten times that is far below what a forgotten scale would give.
    """
    given = job("hurts", 0)
    before, after = shown(given, solved(given))
    assert before < 0.01
    assert 0 < after - before < 0.01


def test_a_large_weight_that_reads_zeros_costs_nothing_but_after_int8() -> None:
    """The measure can fail: steps of 50 / 127 leave nothing of the other weights."""
    given = job("hurts", 0)
    for rows in (given.data.train, given.data.validation):
        assert isinstance(rows, Rows)
        rows.inputs[:, 0] = 0.0
    student = solved(given)
    fine_before, fine_after = shown(given, student)
    with torch.no_grad():
        student.weight[0, 0] = 50.0
    before, after = shown(given, student)
    assert before == fine_before
    assert after - before > 10 * (fine_after - fine_before)


def test_calibration_reads_training_inputs_only() -> None:
    given = job("hurts", 0)
    batches = Batches(given.data, machine_for(given.recipe.training))
    arrays = [feed["x"] for feed in calibration(given, batches, ("x",))]
    rows = given.data.train
    assert isinstance(rows, Rows)
    assert torch.equal(torch.cat([torch.from_numpy(a) for a in arrays]), rows.inputs)
    bare = replace(given.data, validation=[], test=[])
    assert list(calibration(replace(given, data=bare), batches, ("x",)))


@pytest.mark.slow
def test_a_contest_measures_the_drop_of_every_contender_and_of_plain() -> None:
    given = job("more", 0, steps=40)
    ruling = referee(given, "gains", after="int8", equal="steps", budget_seconds=60, most_pairs=4)
    for rounded, side in (
        (ruling.plain_int8, ruling.plain),
        (ruling.contenders[0].int8, ruling.contenders[0].side),
    ):
        assert rounded is not None
        assert rounded.before == pytest.approx(side.scores[:4], rel=1e-5)
        assert len(rounded.after) == 4
    assert ruling.longer[0].int8 is None
