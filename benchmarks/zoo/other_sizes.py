"""Each axis that an exported file leaves free, run at two other sizes beside the torch module.

The inputs are the architecture's own at another batch, the runtime is called here, and outputs are
equal by the measure of the other steps: the student's own when its numbers move by a rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor, nn

from zoo.agreement import ROUNDOFF, compare, outputs, tolerances
from zoo.architecture import Architecture
from zoo.checks import CheckFailed

# One size that is smaller than the example's and hides a wrong broadcast, and one that is larger.
OTHER_BATCHES = (1, 5)


def run_at_other_sizes(
    student: nn.Module, architecture: Architecture, file: Path
) -> dict[str, dict[str, float]]:
    """Run a file at other sizes of each of its free axes.

    Args:
        student: What was exported.
        architecture: Makes inputs of other sizes.
        file: The ONNX model.

    Returns:
        For each free size, by its name, the agreement at each size that was run.

    Raises:
        CheckFailed: The file does not run where the module does, or says something else.
    """
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    letters = _letters(session)
    if letters - {"batch"}:
        raise CheckFailed(f"the file leaves axes free that nobody asked for: {sorted(letters)}")
    return {
        letter: {str(batch): _agreement(student, architecture, session, batch) for batch in sizes}
        for letter, sizes in ((letter, OTHER_BATCHES) for letter in sorted(letters))
    }


def _letters(session: Any) -> set[str]:
    """Names of the free sizes: "batch" for a first axis, else the name with its place."""
    return {
        "batch" if axis == 0 else f"{size} (axis {axis} of {value.name})"
        for value in session.get_inputs()
        for axis, size in enumerate(value.shape)
        if not isinstance(size, int)
    }


def _agreement(student: nn.Module, architecture: Architecture, session: Any, batch: int) -> float:
    inputs = architecture.example(batch)
    wanted = outputs(student, inputs)
    found = [torch.as_tensor(value) for value in _run(session, inputs, batch)]
    # Another runtime rounds each weight's products in its own order.
    rounded = dict.fromkeys(dict(student.named_parameters()), ROUNDOFF)
    result = compare(found, wanted, tolerances(student, inputs, rounded))
    if not result:
        how = f"{result.difference:.1e}, {result.error:.1f} times what rounding explains"
        told = result.problem or f"its outputs differ by {how}"
        raise CheckFailed(f"the file at a batch of {batch}: {told}")
    return result.error


def _run(session: Any, inputs: Mapping[str, Any], batch: int) -> list[Any]:
    feed = {
        value.name: inputs[value.name].numpy()
        for value in session.get_inputs()
        if isinstance(inputs.get(value.name), Tensor)
    }
    try:
        found: list[Any] = session.run(None, feed)
    except Exception as error:  # onnxruntime's own classes have no common base.
        raise CheckFailed(f"the file at a batch of {batch}: it does not run ({error})") from error
    return found
