"""The numbers of a quantised pair: judged by what quantisation costs the untouched student.

    e  = int8 output - truth of the candidate        r  = RMS(e) / RMS(truth)
    e' = int8 output - truth of the reference        r' = RMS(e') / RMS(truth')

The truths are those of the float32 students, in float64; both files were quantised alike. Then

    r <= F exp(z sqrt((1/n + 1/m) / 2)) max(r', q)        F = 4, z = 4.75

over n and m rows, and the largest error over the largest value of its truth likewise.

Where the factor comes from. Rounding a tensor to steps of s adds a variance of s^2 / 12, and s is
its range over 255. Two students of one graph add up errors in the same sums, so r / r' is a ratio
of ranges to spreads of their weights and activations, and of how much of an error cancels on the
way. F = 4 is two bits: one for ranges twice as wide for their spread, as a Laplace law has beside a
normal one (of 10^4 numbers the largest is 6.5 deviations off, and 3.9), one for the rest. The
second factor is the scatter of two measured RMS errors: the logarithm of one over n rows has the
variance 1 / (2n). Elements of a row share their history, so n counts rows.

q = range(truth) / 255 / sqrt(12) is the rounding of the output itself, which no int8 file is below;
the reference may be, by chance or because its output is zero.

A budget that would take the candidate's mean for its outputs refutes nothing, so an output is not
judged where the tolerance reaches the spread of the truth over its rows. An error as large as that
spread refutes a candidate that has no reference, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from opdf_compile.artefacts import CheckData, Quantisation, drop_of, quantisation_of
from opdf_compile.errors import UserError
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.numerics.cause import of_its_passes
from opdf_compile.parity.numerics.checking import check_numerics
from opdf_compile.parity.numerics.copies import both_rewritten, of_copied_reference, of_copy_alone
from opdf_compile.parity.numerics.every_output import judged
from opdf_compile.parity.numerics.evidence import Evidence, read_evidence
from opdf_compile.parity.numerics.int8_budget import (
    allowed_factor,
    range_of,
    spread_of,
    truths_of,
)
from opdf_compile.parity.numerics.int8_result import int8_result
from opdf_compile.parity.numerics.judging import judge_output
from opdf_compile.parity.numerics.mismatch import Array
from opdf_compile.parity.numerics.numerics_result import NumericsResult, OutputError, ratio
from opdf_compile.parity.runtime.protocol import Device
from opdf_compile.parity.runtime.registry import resolve_device

_STEPS = 255
_NO_PEER = (
    "what int8 may cost is measured on the reference, which does not have it or answers the same "
    "in every row; give one with a head of random weights, or verify the float32 files"
)
_SAME_IN_EVERY_ROW = (
    "the truth is the same in every row, so that nothing tells an error of int8 from a fault; "
    "verify the float32 files for it"
)


def check_quantised(
    candidate: PathLike,
    check: Path | None,
    device: Device,
    *,
    reference: PathLike | None = None,
    reference_check: Path | None = None,
) -> NumericsResult:
    """Run a quantised candidate on its check data and judge every output.

    A file whose check data is that of the quantised graph itself (an ONNX student that came with
    quantised nodes) is judged like any other.

    Args:
        candidate: An ONNX file that quantises.
        check: Its check data; None gives "not_checked".
        device: Where to run.
        reference: The untouched student's ONNX file, quantised alike.
        reference_check: Its check data.

    Raises:
        ArtefactError: A file cannot be read, or check data does not fit its file.
        DeviceError: The runtime cannot run the model on the device.
    """
    as_any_other = partial(
        check_numerics,
        candidate,
        check,
        device,
        reference=reference,
        reference_check=reference_check,
    )
    if check is None:
        return as_any_other()
    ours = read_evidence(candidate, check)
    theirs, lacks = _of_reference(reference, reference_check)
    plain, beside = _runs(ours, theirs, device)
    if not _is_off(plain) or (theirs is not None and _is_exact(beside, theirs.data)):
        # The evidence is that of the quantised graph.
        return as_any_other()
    result = _result(plain, beside, ours, lacks)
    if result.verdict == "fail":
        peers = {error.output: error for error in beside}
        notes = of_its_passes(ours, device, _judge, peers) if peers else ()
        result = replace(result, notes=(*result.notes, *notes))
    else:
        result = _also_as_written(result, ours, theirs, device, lacks)
    if not ours.rewritten:
        return of_copied_reference(result, ours, theirs)
    if theirs is None:
        return result
    if not theirs.rewritten:
        return of_copy_alone(result, ours, theirs, reference)
    return replace(result, notes=(*result.notes, both_rewritten(ours)))


def _runs(
    ours: Evidence, theirs: Evidence | None, device: Device, *, optimised: bool = True
) -> tuple[tuple[OutputError, ...], tuple[OutputError, ...]]:
    """What both files compute; nothing of a reference that is not there."""
    plain = judged(ours, device, _measured, {}, optimised=optimised)
    if theirs is None:
        return plain, ()
    beside = judged(theirs, device, _measured, {}, optimised=optimised)
    return plain, tuple(_telling(error, theirs.data, ours.data) for error in beside)


def _result(
    plain: Sequence[OutputError], beside: Sequence[OutputError], ours: Evidence, lacks: str
) -> NumericsResult:
    peers = {error.output: error for error in beside}
    found = tuple(_budgeted(error, ours.data, peers.get(error.output)) for error in plain)
    how = quantisation_of(ours.model.view) or Quantisation("QDQ", "int8")
    return int8_result(found, peers, ours.data, how, lacks)


def _also_as_written(
    result: NumericsResult, ours: Evidence, theirs: Evidence | None, device: Device, lacks: str
) -> NumericsResult:
    """Judge what the files mean too, node by node, as no processor changes it.

    Kernels that cut off sums may cost the untouched student so much that its error hides one of
    the candidate (OpenVINO without VNNI: 8 % of an output that is 1 % off as the file means it).
    """
    try:
        plain, beside = _runs(ours, theirs, resolve_device("cpu"), optimised=False)
    except UserError:  # That runtime is not here, or does not take the files.
        return result
    found = _result(plain, beside, ours, lacks)
    if found.verdict != "fail":
        return result
    note = (
        "that is what the files mean, node by node in float32; what the kernels of "
        f"{device.runtime.name} on this processor add to both errors would hide it"
    )
    return replace(found, notes=(*found.notes, note))


def _of_reference(reference: PathLike | None, check: Path | None) -> tuple[Evidence | None, str]:
    """The evidence of a reference that is quantised too; else why there is no budget."""
    if reference is None:
        return None, "there is no reference"
    file = ModelFile.of(reference)
    if quantisation_of(file.view) is None:
        return None, f"{file.name} is not quantised"
    if check is None:
        return None, f"{file.name} has no check data"
    return read_evidence(file, check), ""


def _is_off(found: Sequence[OutputError]) -> bool:
    """Whether an output is further from its truth than float32 arithmetic takes it."""
    return any(error.excess > 1 for error in found)


def _varies(output: str, data: CheckData) -> bool:
    """Whether the rows of an output differ; those of a head that starts at zero do not."""
    return spread_of(truths_of(output, data)) > 0


def _telling(error: OutputError, theirs: CheckData, ours: CheckData) -> OutputError:
    """A reference's output, without its drop where that says nothing of the candidate's.

    The quantised layers, however deep they are, do not reach one that is the same in every row.
    """
    moves = error.output in ours.output_names and _varies(error.output, ours)
    if error.drop is None or not moves or _varies(error.output, theirs):
        return error
    return replace(error, drop=None)


def _is_exact(found: Sequence[OutputError], data: CheckData) -> bool:
    """Whether quantising left the scores of a file as they were; whole numbers are decisions."""
    scores = [e for e in found if e.drop is not None and _varies(e.output, data)]
    return bool(scores) and not _is_off(scores)


def _measured(
    name: str, data: CheckData, values: Sequence[Array], _peer: OutputError | None = None
) -> OutputError:
    """One output as in float32, and its drop."""
    error = judge_output(name, data, values)
    truths = truths_of(name, data)
    if error.problem or error.unjudged or truths[0].dtype.kind != "f":
        return error
    return replace(error, drop=drop_of(name, truths, values))


def _judge(
    name: str, data: CheckData, values: Sequence[Array], peer: OutputError | None = None
) -> OutputError:
    return _budgeted(_measured(name, data, values), data, peer)


def _budgeted(error: OutputError, data: CheckData, peer: OutputError | None) -> OutputError:
    """The error of one output beside what the reference's explains."""
    if error.problem or error.unjudged:
        return error
    if error.drop is None:
        why = "whole numbers are decisions, which int8 moves; return the scores beside them"
        return error if error.excess <= 1 else replace(error, factor=math.inf, unjudged=why)
    if error.excess <= 1:
        # As in float32: int8 has no part in it, as in one that is the same in every row.
        return error
    truths = truths_of(error.output, data)
    spread = spread_of(truths)
    if peer is None or peer.drop is None:
        # All that can be said without a reference: always answering the mean would be better.
        alone = replace(error, floor_rms=spread or math.inf, floor_max=math.inf, factor=1.0)
        return alone if alone.excess > 1 else replace(alone, unjudged=_NO_PEER)
    step = range_of(truths) / _STEPS
    # Of a reference that answers zero alone, nothing is known.
    theirs = peer.drop.relative_rms if math.isfinite(peer.drop.relative_rms) else 0.0
    rms = max(theirs * error.drop.truth_rms, step / math.sqrt(12))
    largest = max(ratio(peer.max_abs, peer.scale) * error.scale, step / 2)
    wide = allowed_factor(error.rows, peer.rows)
    made = replace(error, factor=wide, floor_rms=rms, floor_max=largest)
    if made.element is not None:
        made = replace(made, element=replace(made.element, tolerance=made.tolerance_max))
    if made.excess > 1 or made.tolerance_rms < spread:
        return made
    if spread == 0:
        return replace(made, unjudged=_SAME_IN_EVERY_ROW)
    why = (
        f"int8 costs the untouched student so much there ({peer.drop}) that a file which always "
        "answers the mean would pass; give calibration data and example inputs like those of use, "
        "and more rows of them"
    )
    return replace(made, unjudged=why)
