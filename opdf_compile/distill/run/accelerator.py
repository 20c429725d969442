"""The Accelerator of a run: processes and trackers; precision is the engine's own."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from opdf_compile.distill.engine import (
    Machine,
    Processes,
    Setup,
    Teaching,
    machine_for,
)
from opdf_compile.distill.recipe import TRACKERS
from opdf_compile.errors import UserError
from opdf_compile.extras import requirements_of
from opdf_compile.graph import phase_flags

if TYPE_CHECKING:
    from accelerate import Accelerator

    from opdf_compile.distill.recipe import TrainingSection


def require_accelerate() -> None:
    """Refuse to start without Accelerate.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise UserError(
            "the package accelerate is not installed, and training runs on it; install it with "
            f"pip install {requirements_of('distill')}"
        )


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose package is missing: Accelerate leaves them out without a word.

    Raises:
        UserError: With the command that installs it.
    """
    for name in names:
        packages = TRACKERS[name]
        if not any(importlib.util.find_spec(package) for package in packages):
            raise UserError(
                f"[training] log_with has {name!r} and its package is not installed; install it "
                f"with pip install {packages[0]}, or take it out of the recipe"
            )


def require_machine(training: TrainingSection) -> Machine:
    """Refuse a device, a precision or a tracker that is not there.

    Raises:
        DeviceError: The device or the precision is not there.
        UserError: A tracker is not there.
    """
    require_trackers(training.log_with)
    return machine_for(training)


def open_accelerator(training: TrainingSection, folder: Path) -> Accelerator:
    """Accelerate's own object, for as many processes as were launched.

    Raises:
        DeviceError: The device or the precision is not there.
        UserError: A tracker is not there.
    """
    require_accelerate()
    cpu = require_machine(training).device.type == "cpu"
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    _forget_other_precision()
    return Accelerator(
        cpu=cpu,
        mixed_precision="no",
        log_with=list(training.log_with) or None,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / "trackers")),
    )


def _forget_other_precision() -> None:
    """Let a process that used Accelerate in another precision run recipes.

    Accelerate keeps one state per process and refuses a second precision. There is no public way
    to let go of it; the process group stays.
    """
    from accelerate.state import AcceleratorState

    kept = AcceleratorState._shared_state
    if kept and kept.get("_mixed_precision") != "no":
        AcceleratorState._reset_state()


def start_trackers(accelerator: Accelerator, recipe: dict[str, Any]) -> None:
    """Open the trackers with the recipe as a flat table."""
    if accelerator.log_with:
        accelerator.init_trackers("opdf-compile", config=_flat(recipe))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, item in value.items():
            found.update(_flat(item, f"{name}.{key}" if name else str(key)))
        return found
    return {name: value if isinstance(value, bool | int | float | str) else str(value)}


def added_up(accelerator: Accelerator, vector: Tensor) -> Tensor:
    """A vector summed over all processes."""
    if accelerator.num_processes == 1:
        return vector
    added: Tensor = accelerator.reduce(vector, reduction="sum")
    return added


def processes(accelerator: Accelerator, setup: Setup, teaching: Teaching) -> Processes:
    """The processes of a run, for its steps."""

    def wrap(objective: nn.Module) -> nn.Module:
        if accelerator.num_processes > 1:
            from accelerate.utils import DistributedDataParallelKwargs

            unused = _unused_parameters(objective, setup, teaching)
            accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unused)
        prepared: nn.Module = accelerator.prepare_model(objective)
        return prepared

    add_up = functools.partial(added_up, accelerator)
    return Processes(accelerator.process_index, accelerator.num_processes, add_up, wrap)


def _unused_parameters(objective: nn.Module, setup: Setup, teaching: Teaching) -> bool:
    """Whether the objective leaves a parameter without a gradient: DDP has to look for those."""
    batch = setup.looked_at_twice(setup.batches.moved(setup.job.example))
    told = None
    if teaching.teacher is not None:
        told = teaching.second(teaching.outputs(teaching.teacher, batch), batch)
    with torch.random.fork_rng(), phase_flags(objective, "eval"):
        pieces = objective(batch, told)
        torch.autograd.backward([total for total, _ in pieces.values()])
    trained = [p for p in objective.parameters() if p.requires_grad]
    unused = any(p.grad is None for p in trained)
    for parameter in trained:
        parameter.grad = None
    return unused
