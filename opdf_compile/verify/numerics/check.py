"""Numerics: the candidate's outputs against the float64 truth of the model it was exported from.

floors      the noise floor and the factors above it, with their derivation
problems    what no tolerance excuses
judging     one output
result      what was found
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from opdf_compile.errors import ArtefactError
from opdf_compile.io.check_data import CheckData, read_check
from opdf_compile.io.files import sha256
from opdf_compile.verify.numerics.floors import HALVES, Peer
from opdf_compile.verify.numerics.judging import judge
from opdf_compile.verify.numerics.problems import Array
from opdf_compile.verify.numerics.result import NumericsResult, OutputError, Precision, ratio
from opdf_compile.verify.runtime.runner import Runner
from opdf_compile.verify.runtime.sessions import Device


def check_numerics(
    candidate: Path,
    check: Path | None,
    device: Device,
    *,
    reference: Path | None = None,
    reference_check: Path | None = None,
) -> NumericsResult:
    """Run the candidate on its check data and judge every output.

    Args:
        candidate: An ONNX file.
        check: Its check data; None gives "not_checked".
        device: Where to run.
        reference: The untouched student's ONNX file, whose error widens the noise floor.
        reference_check: Its check data.

    Raises:
        ArtefactError: A file cannot be read, or the check data belongs to another interface.
        DeviceError: The runtime cannot run the model on the device.
    """
    if check is None:
        return NumericsResult("not_checked", worst="there is no check data")
    data = read_check(check)
    if not data.onnx_sha256:
        # Evidence that names no file would pass for the evidence of any.
        raise ArtefactError(
            f"{check} does not say which ONNX file it was written for, wanted its SHA-256; export "
            "the model again"
        )
    if data.onnx_sha256 != sha256(candidate):
        sentence = (
            f"{check.name} was written for another file than {candidate.name} (its SHA-256 "
            "differs): export it again"
        )
        return NumericsResult("fail", samples=len(data.samples), worst=sentence)
    outputs = _run(candidate, data, device, check)
    peers: Mapping[str, Peer] = {}
    other: CheckData | None = None
    if reference is not None and reference_check is not None:
        other = read_check(reference_check)
        peers = _peers(reference, other, device, reference_check)
    found = tuple(
        judge(name, data, [values[name] for values in outputs], peers.get(name))
        for name in data.output_names
    )
    precision = _precision(data.dtype, None if other is None else other.dtype, found, peers)
    return _result(found, len(data.samples), precision)


def _run(model: Path, data: CheckData, device: Device, check: Path) -> list[dict[str, Array]]:
    runner = Runner(model, device)
    # An output that the check data does not know would pass unseen, so both sides must agree.
    for what, theirs, ours in (
        ("inputs", data.input_names, runner.input_names),
        ("outputs", data.output_names, runner.output_names),
    ):
        if set(theirs) != set(ours):
            raise ArtefactError(
                f"{check} was written for the {what} {', '.join(theirs) or 'none'}, but {model} "
                f"has {', '.join(ours) or 'none'}; give the check data that was exported with "
                "this model"
            )
    return [runner(sample.inputs) for sample in data.samples]


def _peers(model: Path, data: CheckData, device: Device, check: Path) -> dict[str, Peer]:
    """By output, what the reference shows against its own truth."""
    found = {}
    outputs = _run(model, data, device, check)
    for name in data.output_names:
        error = judge(name, data, [values[name] for values in outputs])
        if not error.problem and not error.unjudged and error.scale > 0:
            found[name] = Peer(
                error.max_abs / error.scale,
                error.rms / error.scale,
                error.amplification,
                error.rows,
                data.dtype,
            )
    return found


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
    if dtype not in HALVES or not budgeted:
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


def _result(found: tuple[OutputError, ...], samples: int, precision: Precision) -> NumericsResult:
    worst = max(found, key=lambda error: (error.excess > 1, bool(error.unjudged), error.excess))
    verdict = "fail" if worst.excess > 1 else "not_checked" if worst.unjudged else "pass"
    return NumericsResult(
        verdict=verdict,
        max_abs_error=max(error.max_abs for error in found),
        max_rel_error=max(ratio(error.max_abs, error.scale) for error in found),
        noise_floor=worst.floor_max,
        tolerance=worst.tolerance_max,
        samples=samples,
        per_output=found,
        worst=str(worst),
        element=worst.element,
        precision=precision,
    )
