"""The split of a step into phases and kinds, by hand and on a real step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench import students
from bench.forms import build, planned
from bench.step_profile import PHASES, STEP, STUDENT, collect, kind_of, profile_step

CPU = torch.device("cpu")


def event(name: str, start: float, end: float, own: float = 0.0, device: str = "CPU") -> Any:
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=start, end=end),
        self_cpu_time_total=own,
        self_device_time_total=own,
        device_type=SimpleNamespace(name=device),
    )


def test_phases_and_kinds_by_hand():
    """Microseconds: the student takes 100, the step 100, of which the pull 40."""
    events = [
        event(STUDENT, 0, 100),
        event("aten::addmm", 10, 80, 60),
        event("aten::copy_", 20, 25, 5),
        event(STEP, 100, 200),
        event("pull", 110, 150),
        event("aten::mm", 115, 145, 30),
        event("aten::mul_", 160, 170, 10),
        event("aten::mm", 500, 600, 100),  # Outside every phase.
    ]
    found = collect(events, steps=1)
    micro = 1e-6
    assert found[STUDENT].seconds == pytest.approx(100 * micro)
    assert found[STUDENT].kinds == pytest.approx(
        {"products": 60 * micro, "copies": 5 * micro, "other": 0.0}
    )
    assert found["pull"].seconds == pytest.approx(40 * micro)
    assert found["pull"].kinds["products"] == pytest.approx(30 * micro)
    assert found[STEP].seconds == pytest.approx(60 * micro)
    assert found[STEP].kinds["other"] == pytest.approx(10 * micro)
    # Averaged over the steps that were profiled.
    assert collect(events, steps=2)["pull"].seconds == pytest.approx(20 * micro)


def test_on_a_gpu_the_kernels_count_and_not_the_launches():
    events = [
        event(STEP, 0, 100),
        event("pull", 10, 90),
        event("aten::mm", 11, 12, 1),
        event("sm90_xmma_gemm_f32f32", 20, 80, 60, device="CUDA"),
    ]
    assert collect(events, steps=1)["pull"].kinds["products"] == pytest.approx(60e-6)


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::mm", "products"),
        ("aten::bmm", "products"),
        ("aten::convolution_backward", "products"),
        ("ampere_sgemm_128x64_nn", "products"),
        ("aten::copy_", "copies"),
        ("Memcpy DtoD", "copies"),
        ("aten::add_", "other"),
        ("aten::mm_metadata", "other"),
    ],
)
def test_kinds(operator: str, kind: str):
    assert kind_of(operator) == kind


def test_a_real_step_has_all_phases_and_leaves_no_mark():
    student = students.student("tiny", CPU)
    traced, plan = planned(student, None)
    form = build("hoisted", student, traced, plan)
    form.step(1)
    found = profile_step(form, 2, CPU, steps=1)
    assert tuple(found) == PHASES
    assert all(phase.seconds > 0 for phase in found.values())
    assert found["pull"].kinds["products"] > 0 and found["refresh"].kinds["products"] > 0
    assert found["optimizer"].kinds["products"] == 0
    optimizer: Any = form.optimizer
    assert "backward" not in vars(optimizer.program) and "step" not in vars(optimizer.inner)
