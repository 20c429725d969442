"""Whether the file is wrong, or what a runtime makes of it: asked where an output is refuted."""

from __future__ import annotations

from collections.abc import Mapping

from opdf_compile.errors import DeviceError
from opdf_compile.parity.numerics.every_output import Judge, P, judged
from opdf_compile.parity.numerics.evidence import Evidence
from opdf_compile.parity.numerics.judging import judge_samples
from opdf_compile.parity.runtime.protocol import Device
from opdf_compile.parity.runtime.registry import DEFAULT, runtime_of

# As runtimes call them.
_HALVES = ("f16", "bf16")


def of_its_passes(
    evidence: Evidence, device: Device, judge: Judge[P], peers: Mapping[str, P]
) -> tuple[str, ...]:
    """A sentence where the runtime's own graph passes are what changes the numbers."""
    runtime = device.runtime
    if not runtime.unoptimised or not _right(evidence, device, judge, peers, optimised=False):
        return ()
    return (
        f"without its graph optimisation {runtime.name} keeps this file's numbers within the "
        "tolerance, so one of its passes is what moves them; write the operation in another way, "
        f"or {runtime.unoptimised}",
    )


def of_the_runtime(evidence: Evidence, device: Device, *, computed: bool) -> tuple[str, ...]:
    """A sentence where the default runtime keeps the numbers, so that this one changes them.

    Args:
        evidence: The file.
        device: Where it was refuted.
        computed: Whether it ran there at all.
    """
    runtime, default = device.runtime, runtime_of(DEFAULT)
    if runtime.name == default.name or default.missing("cpu") is not None:
        return ()
    # What the reference shows there is another matter, so it widens no tolerance.
    if not _right(evidence, default.resolve("cpu"), judge_samples, {}):
        return ()
    half = device.precision if device.precision in _HALVES else ""
    what = f"computes it in {half}" if half else "computes another function of it"
    if not computed:
        what = "does not compute it"
    return (
        f"the file is right in {default.name} {default.version()}, which keeps its numbers within "
        f"the tolerance; {runtime.name} {runtime.version()} {what}: ship it to another runtime, "
        "or write what that one gets wrong in another way",
    )


def _right(
    evidence: Evidence,
    device: Device,
    judge: Judge[P],
    peers: Mapping[str, P],
    *,
    optimised: bool = True,
) -> bool:
    """Whether every output is within its tolerance on a device."""
    try:
        found = judged(evidence, device, judge, peers, optimised=optimised)
    except DeviceError:  # It does not run there as it stands.
        return False
    return all(error.excess <= 1 for error in found)
