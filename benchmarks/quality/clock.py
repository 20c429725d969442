"""How much longer a real step of `opdf.Overparam` takes than one of torch's own optimizer.

Plain training gets so many more steps at equal wall-clock. Blocks of both are timed in turns; the
figure is the median of the ratios of neighbouring blocks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import opdf_compile as opdf
from quality.fleet import OptimizerName, distillation_losses
from quality.tasks import Task

BATCH = 32
_BLOCKS, _STEPS, _WARM_UP = 9, 15, 5
_CLASSES = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def step_ratio(task: Task, optimizer: OptimizerName, *, online: bool, cores: int = 3) -> float:
    """Time of an over-parameterised step over that of a plain one.

    Args:
        task: On the device.
        optimizer: Wrapped, and plain.
        online: Whether the teacher's forward is part of the step, or its logits are stored.
        cores: Cores per weight.
    """
    options: dict[str, Any] = {"momentum": 0.9} if optimizer == "sgd" else {}
    students = [task.student()().to(task.parts["train"].inputs) for _ in range(2)]
    plain = _CLASSES[optimizer](students[0].parameters(), lr=1e-3, **options)
    ours = opdf.Overparam(students[1], _CLASSES[optimizer], cores=cores, lr=1e-3, **options)
    teacher = task.teacher() if online else None
    steps = [
        _stepper(task, student, optim, teacher)
        for student, optim in zip(students, (plain, ours), strict=True)
    ]
    for step in steps:
        _timed(step, _WARM_UP)
    ratios = []
    for _block in range(_BLOCKS):
        without, with_cores = (_timed(step, _STEPS) for step in steps)
        ratios.append(with_cores / without)
    return statistics.median(ratios)


def _stepper(
    task: Task, student: nn.Module, optimizer: torch.optim.Optimizer, teacher: nn.Module | None
) -> Callable[[], None]:
    data = task.parts["train"]
    inputs, labels = data.inputs[:BATCH], data.labels[None, :BATCH]
    share = torch.full((1,), 0.9, device=inputs.device, dtype=inputs.dtype)

    def answers() -> Tensor:
        if teacher is None:
            return data.teacher[None, :BATCH]
        with torch.no_grad():
            return teacher(inputs)[None]  # type: ignore[no-any-return]

    def step() -> None:
        optimizer.zero_grad()
        loss = distillation_losses(student(inputs)[None], answers(), labels, share).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _timed(step: Callable[[], None], count: int) -> float:
    _wait()
    started = time.perf_counter()
    for _ in range(count):
        step()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
