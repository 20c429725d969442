"""Every output of a file against its truth, in a runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from opdf_compile.artefacts import CheckData
from opdf_compile.parity.numerics.drawing import drawing_outputs
from opdf_compile.parity.numerics.evidence import Evidence
from opdf_compile.parity.numerics.free_axes import StopsAtSize
from opdf_compile.parity.numerics.mismatch import Array
from opdf_compile.parity.numerics.numerics_result import OutputError, unusable
from opdf_compile.parity.runtime.protocol import Device

# What the reference shows on an output: its errors, or all that was found.
P = TypeVar("P")
Judge = Callable[[str, CheckData, Sequence[Array], P | None], OutputError]


def judged(
    evidence: Evidence,
    device: Device,
    judge: Judge[P],
    peers: Mapping[str, P],
    *,
    optimised: bool = True,
) -> tuple[OutputError, ...]:
    """Every output against its truth, and against random numbers that the file draws itself.

    Raises:
        ArtefactError: The check data belongs to another interface.
        DeviceError: The runtime cannot run the model on the device.
    """
    data = evidence.data
    try:
        outputs = evidence.run(device, optimised=optimised)
    except StopsAtSize as stop:
        stopped = (unusable(name, str(stop)) for name in data.output_names)
        return tuple(replace(error, computed=False) for error in stopped)
    drawing = drawing_outputs(evidence.model)
    found = []
    for name in data.output_names:
        error = judge(name, data, [values[name] for values in outputs], peers.get(name))
        nodes = drawing.get(name)
        found.append(_drawn(error, nodes) if nodes and not error.problem else error)
    return tuple(found)


def _drawn(error: OutputError, nodes: str) -> OutputError:
    """An output that another run would change: refuted if it is off, and never right."""
    sentence = f"the file draws random numbers for it ({nodes})"
    if error.excess > 1:
        return replace(error, problem=f"is off its truth, and {sentence}")
    return error if error.unjudged else replace(error, unjudged=sentence)
