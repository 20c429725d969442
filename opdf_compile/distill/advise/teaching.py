"""What the teacher says: computed in every step, or once, as the recipe has it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.distill.advise.folds import Folds
from opdf_compile.distill.recipe.job import Batch, Job


class Teaching:
    """The teacher's outputs for examples of the pool.

    Args:
        job: The prepared recipe.
        folds: Its examples.
        device: Where the teacher computes.
        floating: Type of floating-point tensors; None leaves them.
        autocast: The mixed precision that it runs in.
        check: Called now and then; may raise when time is up.
    """

    def __init__(
        self,
        job: Job,
        folds: Folds,
        device: torch.device,
        floating: torch.dtype | None,
        autocast: Callable[[], AbstractContextManager[Any]],
        check: Callable[[], Any],
    ) -> None:
        """Compute the outputs once where the recipe keeps them: a step then costs what it will."""
        self._job, self._autocast = job, autocast
        self._teacher = None if job.teacher is None else moved(job.teacher, device, floating)
        self._kept: list[dict[str, Tensor]] = []
        if self._teacher is None or job.recipe.teacher is None or not job.recipe.teacher.cache:
            return
        for indices in torch.split(torch.arange(folds.size), job.recipe.data.batch):
            examples = [folds.example(int(index)) for index in indices]
            outputs = self._compute(moved(job.data.collate(examples), device, floating))
            parts = {name: value.unbind() for name, value in outputs.items() if value.dim()}
            self._kept += [
                {name: values[place] for name, values in parts.items()}
                for place in range(len(indices))
            ]
            check()

    def outputs(self, indices: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The outputs for a batch, by name; empty without a teacher."""
        if self._teacher is None:
            return {}
        if not self._kept:
            return self._compute(batch)
        rows = [self._kept[int(index)] for index in indices]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    @torch.no_grad()
    def _compute(self, batch: Batch) -> dict[str, Tensor]:
        assert self._teacher is not None
        with self._autocast():
            return self._job.forward(self._teacher, batch)


def moved(value: Any, device: torch.device, floating: torch.dtype | None) -> Any:
    """A module or a batch on a device, floating-point values in a type if one is given."""
    if isinstance(value, nn.Module):
        return value.to(device) if floating is None else value.to(device, floating)
    return {
        name: tensor.to(device, floating if tensor.is_floating_point() else None)
        for name, tensor in value.items()
    }
