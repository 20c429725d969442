"""Numerics: the candidate's outputs against the float64 truth of the model it was exported from.

floors      the noise floor and the factors above it, with their derivation
problems    what no tolerance excuses
free_axes   a file that does not run at a size which it declares free
judging     one output
result      what was found
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from opdf_compile.artefacts import CheckData
from opdf_compile.errors import DeviceError
from opdf_compile.parity.model_file import PathLike
from opdf_compile.parity.numerics.drawing import drawing_outputs
from opdf_compile.parity.numerics.evidence import Evidence, read_evidence
from opdf_compile.parity.numerics.floors import HALF_DTYPES, Peer
from opdf_compile.parity.numerics.free_axes import StopsAtSize
from opdf_compile.parity.numerics.judging import judge_output
from opdf_compile.parity.numerics.numerics_result import (
    NumericsResult,
    OutputError,
    Precision,
    ratio,
    unusable,
    urgency,
)
from opdf_compile.parity.runtime.protocol import Device
from opdf_compile.parity.runtime.registry import DEFAULT, runtime_of

# As runtimes call them.
_HALVES = ("f16", "bf16")


def check_numerics(
    candidate: PathLike,
    check: Path | None,
    device: Device,
    *,
    reference: PathLike | None = None,
    reference_check: Path | None = None,
) -> NumericsResult:
    """Run the candidate on its check data and judge every output.

    A candidate that was rewritten after its export (slimmed, with its weights in another file) can
    pass by the evidence of the original only where the reference was rewritten too. Alone it is
    "not_checked", or refuted where its numbers are not those of the evidence.

    Args:
        candidate: An ONNX file.
        check: Its check data; None gives "not_checked".
        device: Where to run.
        reference: The untouched student's ONNX file, whose error widens the noise floor.
        reference_check: Its check data.

    Raises:
        ArtefactError: A file cannot be read, or check data does not fit its file.
        DeviceError: The runtime cannot run the model on the device.
    """
    if check is None:
        return NumericsResult("not_checked", worst="there is no check data")
    ours = read_evidence(candidate, check)
    theirs = None
    if reference is not None and reference_check is not None:
        theirs = read_evidence(reference, reference_check)
    # The reference first: what it shows against its own truth is what the candidate may show.
    beside = () if theirs is None else _judged(theirs, device, {})
    peers = {} if theirs is None else _peers(beside, theirs.data)
    found = _judged(ours, device, peers)
    precision = _precision(
        ours.data.dtype, None if theirs is None else theirs.data.dtype, found, peers
    )
    result = _result(found, ours.data, precision)
    if result.verdict == "fail":
        computed = all(error.computed for error in found)
        said = _of_the_runtime(ours, device, peers, computed=computed)
        result = replace(result, notes=(*result.notes, *said))
    if not ours.rewritten:
        return result
    if theirs is not None and theirs.rewritten:
        return _of_copies(result, ours, beside)
    return _of_copy_alone(result, ours, theirs, reference)


def _of_copy_alone(
    result: NumericsResult, ours: Evidence, theirs: Evidence | None, reference: PathLike | None
) -> NumericsResult:
    """Numbers that fit the truth of another file are no proof; numbers that do not are one."""
    other = f"its SHA-256 is not the one in {ours.check.name}"
    if result.verdict == "fail":
        sentence = (
            f"{ours.model.name} was rewritten after export ({other}), and its numbers are not "
            f"those that were exported: {result.worst}"
        )
        return replace(result, worst=sentence)
    if reference is None:
        lacks = "there is no reference that was rewritten alike"
    elif theirs is None:
        lacks = f"{Path(reference).name} has no check data"
    else:
        lacks = f"{Path(reference).name} was not"
    sentence = (
        f"{ours.model.name} was rewritten after export ({other}) and {lacks}; rewrite both with "
        "the same tool and keep their check data, or write check data for this file with "
        "opdf-compile check-data"
    )
    return NumericsResult("not_checked", samples=len(ours.data.samples), worst=sentence)


def _of_copies(
    result: NumericsResult, ours: Evidence, beside: tuple[OutputError, ...]
) -> NumericsResult:
    """What the verdict on two rewritten files means."""
    note = (
        f"both files were rewritten after export, and were judged by the inputs and the truth of "
        f"the originals ({ours.check.name})"
    )
    off = [error for error in beside if error.excess > 1]
    if result.verdict != "fail" or not off:
        return replace(result, notes=(*result.notes, note))
    sentence = (
        f"the reference that was rewritten too is off its own truth (its {off[0]}), so the "
        "rewriting may be what changed the numbers; rewrite both in a way that keeps them, or "
        "verify the files as exported"
    )
    return replace(result, verdict="not_checked", outputs=(), worst=sentence)


def _of_the_runtime(
    evidence: Evidence, device: Device, peers: Mapping[str, Peer], *, computed: bool
) -> tuple[str, ...]:
    """A sentence where the runtime's own handling of the file is what changes the numbers."""
    runtime = device.runtime
    if runtime.unoptimised and _right(evidence, device, peers, optimised=False):
        return (
            f"without its graph optimisation {runtime.name} keeps this file's numbers within the "
            "tolerance, so one of its passes is what moves them; write the operation in another "
            f"way, or {runtime.unoptimised}",
        )
    default = runtime_of(DEFAULT)
    if runtime.name == default.name or default.missing("cpu") is not None:
        return ()
    if not _right(evidence, default.resolve("cpu"), {}):
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
    evidence: Evidence, device: Device, peers: Mapping[str, Peer], *, optimised: bool = True
) -> bool:
    """Whether every output is within its tolerance on a device."""
    try:
        found = _judged(evidence, device, peers, optimised=optimised)
    except DeviceError:  # It does not run there as it stands.
        return False
    return all(error.excess <= 1 for error in found)


def _judged(
    evidence: Evidence, device: Device, peers: Mapping[str, Peer], *, optimised: bool = True
) -> tuple[OutputError, ...]:
    """Every output against its truth, and against random numbers that the file draws itself."""
    data = evidence.data
    try:
        outputs = evidence.run(device, optimised=optimised)
    except StopsAtSize as stop:
        stopped = (unusable(name, str(stop)) for name in data.output_names)
        return tuple(replace(error, computed=False) for error in stopped)
    drawing = drawing_outputs(evidence.model)
    found = []
    for name in data.output_names:
        error = judge_output(name, data, [values[name] for values in outputs], peers.get(name))
        nodes = drawing.get(name)
        found.append(_drawn(error, nodes) if nodes and not error.problem else error)
    return tuple(found)


def _drawn(error: OutputError, nodes: str) -> OutputError:
    """An output that another run would change: refuted if it is off, and never right."""
    sentence = f"the file draws random numbers for it ({nodes})"
    if error.excess > 1:
        return replace(error, problem=f"is off its truth, and {sentence}")
    return error if error.unjudged else replace(error, unjudged=sentence)


def _peers(found: tuple[OutputError, ...], data: CheckData) -> dict[str, Peer]:
    """By output, what the reference shows against its own truth."""
    return {
        error.output: Peer(
            error.max_abs / error.scale,
            error.rms / error.scale,
            error.amplification,
            error.rows,
            data.dtype,
        )
        for error in found
        if not error.problem and not error.unjudged and error.scale > 0
    }


def _precision(
    dtype: str,
    reference_dtype: str | None,
    found: tuple[OutputError, ...],
    peers: Mapping[str, Peer],
) -> Precision:
    """The budget of the output that is closest to it, or why there is none."""
    if reference_dtype is None:
        return Precision(dtype, sentence=f"{dtype}, measured against the check data alone")
    if dtype != reference_dtype:
        return Precision(
            dtype,
            reference_dtype,
            sentence=(
                f"the candidate is {dtype} and the reference {reference_dtype}: its error is "
                "measured against its own check data, without a budget; export the reference in "
                f"{dtype} too"
            ),
        )
    budgeted = [e for e in found if not e.problem and e.own_rms > 0 and e.output in peers]
    if dtype not in HALF_DTYPES or not budgeted:
        return Precision(dtype, reference_dtype, sentence=f"both exports are {dtype}")
    worst = max(budgeted, key=lambda e: ratio(e.rms, e.budget_rms))
    theirs, allowed = peers[worst.output].amplification, worst.budget_rms / worst.own_rms
    return Precision(
        dtype,
        reference_dtype,
        error=worst.amplification,
        reference_error=theirs,
        allowed=allowed,
        sentence=(
            f"in {dtype} output {worst.output!r} shows {worst.amplification:.2f} of torch's own "
            f"error, the reference {theirs:.2f}, allowed {allowed:.2f}"
        ),
    )


def _result(
    found: tuple[OutputError, ...], data: CheckData, precision: Precision
) -> NumericsResult:
    worst = max(found, key=urgency)
    verdict = "fail" if worst.excess > 1 else "not_checked" if worst.unjudged else "pass"
    return NumericsResult(
        verdict=verdict,
        max_abs_error=max(error.max_abs for error in found),
        max_rel_error=max(ratio(error.max_abs, error.scale) for error in found),
        noise_floor=worst.floor_max,
        tolerance=worst.tolerance_max,
        samples=len(data.samples),
        outputs=found,
        worst=str(worst),
        precision=precision,
        notes=data.notes,
    )
