"""The forward of an ONNX file in the place of the student's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.distill.engine.batches import Batches
from opdf_compile.distill.recipe import Batch, Job
from opdf_compile.parity import ArraySession, resolve_device


def exported_forward(
    job: Job, batches: Batches, student: nn.Module, file: Path
) -> Callable[[Batch], dict[str, Tensor]]:
    """The forward of an exported student, with the student's names of outputs, on the CPU.

    Args:
        job: The prepared recipe.
        batches: Makes batches for the student.
        student: What was exported, in eval mode.
        file: The ONNX file.
    """
    # An int8 file is scored by what its numbers mean, not by what this processor makes of them.
    runner = ArraySession(file, resolve_device("cpu"), unsaturated=True)
    with torch.no_grad():
        names = list(job.forward(student, batches.moved(job.example)))

    def forward(batch: Batch) -> dict[str, Tensor]:
        found = runner(arrays_of(job, batch, runner.input_names))
        device = batch[job.data.inputs[0]].device
        values = [torch.from_numpy(found[name]).to(device) for name in runner.output_names]
        keys = runner.output_names if set(names) == set(runner.output_names) else names
        return dict(zip(keys, values, strict=True))

    return forward


def arrays_of(job: Job, batch: Batch, input_names: tuple[str, ...]) -> dict[str, Any]:
    """The inputs of an ONNX file for a batch; a single one goes by the file's name."""
    columns = [batch[name] for name in job.data.inputs]
    own = input_names if len(columns) == 1 else job.data.inputs
    return {name: _plain(job, name, c) for name, c in zip(own, columns, strict=True)}


def _plain(job: Job, name: str, column: Tensor) -> Any:
    """A column as the export takes it: a run in float64 exports the model as it is made."""
    like = job.example.get(name, job.example[job.data.inputs[0]])
    return column.to("cpu", like.dtype).numpy()
