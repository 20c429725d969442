"""Where a job trains, and in which precision."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from opdf_compile.errors import DeviceError
from opdf_compile.graph import deep_copy

if TYPE_CHECKING:
    from opdf_compile.distill.recipe import TrainingSection

_MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """A device and a precision.

    Attributes:
        device: Where everything computes.
        precision: "fp32", "bf16", "fp16" (mixed) or "fp64" (all of it).
    """

    device: torch.device
    precision: str = "fp32"

    @property
    def double(self) -> bool:
        """Whether floating-point numbers are float64."""
        return self.precision == "fp64"

    def widened(self, module: nn.Module) -> nn.Module:
        """The module, in float64 where that is asked for."""
        return module.double() if self.double else module

    def teacher(self, module: nn.Module | None) -> nn.Module | None:
        """The teacher on the device; a copy where its numbers become others."""
        if module is None:
            return None
        return self.widened(deep_copy(module) if self.double else module).to(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The region of a forward."""
        if self.precision not in _MIXED:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_MIXED[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """What keeps the gradients of float16 above zero; does nothing in another precision."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")


def machine_for(training: TrainingSection) -> Machine:
    """The machine that a recipe asks for; "auto" takes the GPU where there is one.

    Raises:
        DeviceError: The device or the precision is not there.
    """
    cuda = torch.cuda.is_available()
    if training.device == "cuda" and not cuda:
        raise DeviceError(
            '[training] device is "cuda" and torch finds no CUDA device; run opdf-compile doctor, '
            'or write device = "auto"'
        )
    kind = "cpu" if training.device == "cpu" or not cuda else "cuda"
    if training.precision == "fp16" and kind == "cpu":
        raise DeviceError(
            '[training] precision is "fp16", which needs a CUDA device, and this run is on the '
            'CPU; write precision = "bf16" or "fp32"'
        )
    return Machine(torch.device(kind), training.precision)
