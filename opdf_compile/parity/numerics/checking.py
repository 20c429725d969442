"""Numerics: the candidate's outputs against the float64 truth of the model it was exported from.

floors      the noise floor and the factors above it, with their derivation
problems    what no tolerance excuses
free_axes   a file that does not run at a size which it declares free
copies      files that a tool rewrote after export
converted   those that it converted to half precision
judging     one output
every_output  all of them, as a runtime computes them
cause       whether the file is wrong, or the runtime
result      what was found
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from opdf_compile.artefacts import CheckData
from opdf_compile.parity.model_file import PathLike
from opdf_compile.parity.numerics.cause import of_its_passes, of_the_runtime
from opdf_compile.parity.numerics.copies import of_copied_reference, of_copies, of_copy_alone
from opdf_compile.parity.numerics.every_output import judged
from opdf_compile.parity.numerics.evidence import read_evidence
from opdf_compile.parity.numerics.floors import HALF_DTYPES, Peer
from opdf_compile.parity.numerics.judging import judge_samples
from opdf_compile.parity.numerics.numerics_result import (
    NumericsResult,
    OutputError,
    Precision,
    ratio,
    urgency,
)
from opdf_compile.parity.runtime.protocol import Device


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
    beside = () if theirs is None else judged(theirs, device, judge_samples, {})
    peers = {} if theirs is None else _peers(beside, theirs.data)
    found = judged(ours, device, judge_samples, peers)
    precision = _precision(
        ours.data.dtype, None if theirs is None else theirs.data.dtype, found, peers
    )
    result = _result(found, ours.data, precision)
    if result.verdict == "fail":
        computed = all(error.computed for error in found)
        said = of_its_passes(ours, device, judge_samples, peers)
        said = said or of_the_runtime(ours, device, computed=computed)
        result = replace(result, notes=(*result.notes, *said))
    if not ours.rewritten:
        return of_copied_reference(result, ours, theirs)
    if theirs is not None and theirs.rewritten:
        return of_copies(result, ours, beside)
    return of_copy_alone(result, ours, theirs, reference)


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
