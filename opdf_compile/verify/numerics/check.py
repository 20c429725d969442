"""Numerics: the candidate's outputs against the float64 truth of the model it was exported from.

    e = runtime output - truth         t = torch output (exported dtype) - truth, kept at export
    floor     = max(|t|, |r|, u |truth|)          in the maximum norm and in the RMS norm
    tolerance = A exp(z / sqrt(n)) floor          e must stay within it in both norms, per output

u is the unit roundoff of the exported dtype: no output can be rounded better. r is the reference's
own runtime error against its own truth, brought to the candidate's scale, and capped at A times the
rest of the floor, so that a wrong reference cannot excuse a wrong candidate.

Where the factors come from. e and t sum the same roundings in another order. A sum over k terms has
a random rounding error of sqrt(k) u when it is added in sequence and less when it is added in
blocks; A = 4 allows chains that are A^2 = 16 times longer in one library than in the other, the
ratio of a plain loop to a kernel that sums in 16 lanes. Even with equal variances the ratio of two
measured RMS errors scatters: of n independent rows its logarithm has the standard deviation
1 / sqrt(n) (that of half the logarithm of an F(n, n) variable). Elements of one row share their
history, so n counts rows, not elements. z = 4.75 leaves a correct export one chance in a million.

Integers and booleans have no roundoff: they must be exact unless torch itself differs from the
truth, as where two scores of an argmax tie in the exported dtype.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opdf_compile.errors import ArtefactError
from opdf_compile.io.check_data import CheckData, Sample, read_check
from opdf_compile.io.files import sha256
from opdf_compile.verify.runtime.runner import Runner
from opdf_compile.verify.runtime.sessions import Device

ORDER_FACTOR = 4.0
DEVIATIONS = 4.75
# 2^-24, 2^-11 and 2^-8: half the distance from 1 to the next number. The truth of a float64 export
# is no more exact than the export, so torch's recorded error is none and measures nothing; a
# thousand roundings in one direction is far above what models show and far below any fault.
ROUNDOFF = {
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float64": 1024 * 2.0**-53,
}


@dataclass(frozen=True)
class OutputError:
    """How one output compares with its truth, over all samples.

    Attributes:
        output: Name of the output.
        max_abs: Largest absolute error; infinity where shapes, NaNs or exact values differ.
        rms: Root mean square error.
        scale: Largest absolute value of the truth.
        floor_max: Noise floor of the largest error.
        floor_rms: Noise floor of the RMS error.
        factor: Tolerance over floor.
        worst: Where the largest error is, in words.
        problem: What no tolerance excuses, in a sentence; empty if nothing.
        unjudged: Why nothing can be said about it, in a sentence; empty if it was judged.
    """

    output: str
    max_abs: float
    rms: float
    scale: float
    floor_max: float
    floor_rms: float
    factor: float
    worst: str
    problem: str = ""
    unjudged: str = ""

    @property
    def excess(self) -> float:
        """The larger of error over tolerance in both norms; above 1 is a failure."""
        if self.problem:
            return math.inf
        return max(
            _ratio(self.max_abs, self.factor * self.floor_max),
            _ratio(self.rms, self.factor * self.floor_rms),
        )

    def __str__(self) -> str:
        if self.problem:
            return f"output {self.output!r}: {self.problem}"
        if self.unjudged:
            return f"output {self.output!r} was not judged: {self.unjudged}"
        return (
            f"output {self.output!r}: error {self.max_abs:.2e} (RMS {self.rms:.2e}) at "
            f"{self.worst}, tolerance {self.factor * self.floor_max:.2e} "
            f"(RMS {self.factor * self.floor_rms:.2e})"
        )


@dataclass(frozen=True)
class NumericsResult:
    """The verdict on the numbers.

    Attributes:
        verdict: "pass", "fail" or "not_checked" (no check data, or an output it cannot judge).
        max_abs_error: Largest absolute error over outputs and samples.
        max_rel_error: Largest error over the largest value of its output.
        noise_floor: Noise floor of the output that is closest to its tolerance, absolute.
        tolerance: What that output's error may be, absolute.
        samples: How many inputs were run.
        per_output: One entry per output.
        worst: Why it fails, or which output comes closest, in a sentence.
    """

    verdict: str
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    noise_floor: float | None = None
    tolerance: float | None = None
    samples: int | None = None
    per_output: tuple[OutputError, ...] = ()
    worst: str = ""


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
    peers: Mapping[str, tuple[float, float]] = {}
    if reference is not None and reference_check is not None:
        peers = _relative_errors(reference, read_check(reference_check), device, reference_check)
    found = tuple(
        _judge(name, data, [values[name] for values in outputs], peers.get(name))
        for name in data.output_names
    )
    return _result(found, len(data.samples))


def _run(
    model: Path, data: CheckData, device: Device, check: Path
) -> list[dict[str, np.ndarray[Any, Any]]]:
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


def _relative_errors(
    model: Path, data: CheckData, device: Device, check: Path
) -> dict[str, tuple[float, float]]:
    """By output the reference's largest and RMS error over the scale of its own truth."""
    found = {}
    outputs = _run(model, data, device, check)
    for name in data.output_names:
        error = _judge(name, data, [values[name] for values in outputs], None)
        if not error.problem and not error.unjudged and error.scale > 0:
            found[name] = (error.max_abs / error.scale, error.rms / error.scale)
    return found


def _rows(sample: Sample, output: str) -> int:
    """Independent rows of an output: its batch, which no input and no output exceeds."""
    sizes = [np.shape(value)[0] for value in sample.inputs.values() if np.ndim(value)]
    truth = sample.outputs[output]
    return min(max(sizes, default=1), np.shape(truth)[0] if np.ndim(truth) else 1)


def _judge(
    name: str,
    data: CheckData,
    values: list[np.ndarray[Any, Any]],
    peer: tuple[float, float] | None,
) -> OutputError:
    pairs = [(v, np.asarray(s.outputs[name])) for v, s in zip(values, data.samples, strict=True)]
    # Where torch overflows in the exported dtype, its error says nothing about rounding.
    usable = [_is_measure(sample, name) for sample in data.samples]
    problem = next(
        filter(None, (_problem(v, t, ok) for (v, t), ok in zip(pairs, usable, strict=True))), ""
    )
    if problem:
        return OutputError(name, math.inf, math.inf, 0.0, 0.0, 0.0, 1.0, "", problem)
    samples = [sample for sample, ok in zip(data.samples, usable, strict=True) if ok]
    if not samples:
        reason = (
            f"in {data.dtype} the torch model itself overflows there, or decides a tie otherwise"
        )
        return OutputError(name, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, "", unjudged=reason)
    pairs = [pair for pair, ok in zip(pairs, usable, strict=True) if ok]
    truths = [truth for _, truth in pairs]
    errors = [_error(value, truth) for value, truth in pairs]
    sizes = [error.size for error in errors]
    real = truths[0].dtype.kind == "f"
    roundoff = ROUNDOFF.get(data.dtype, ROUNDOFF["float32"]) if real else 0.0
    scale = _scale(truths)
    own_max = max(*(s.error[name] for s in samples), roundoff * scale)
    own_rms = max(
        _pool([s.rms[name] for s in samples], sizes),
        roundoff * _pool([_root_mean_square(truth) for truth in truths], sizes),
    )
    if peer is not None:
        own_max = max(own_max, min(peer[0] * scale, ORDER_FACTOR * own_max))
        own_rms = max(own_rms, min(peer[1] * scale, ORDER_FACTOR * own_rms))
    rows = sum(_rows(sample, name) for sample in samples)
    return OutputError(
        output=name,
        max_abs=max(float(error.max(initial=0.0)) for error in errors),
        rms=_pool([_root_mean_square(error) for error in errors], sizes),
        scale=scale,
        floor_max=own_max,
        floor_rms=own_rms,
        factor=ORDER_FACTOR * math.exp(DEVIATIONS / math.sqrt(max(rows, 1))),
        worst=_place(errors, usable),
    )


def _is_measure(sample: Sample, name: str) -> bool:
    """Whether torch's error in a sample says anything about the candidate's.

    An infinite one would allow everything. An integer output that torch itself gets wrong is a
    near tie, and its distance (7 labels) is no noise: it would excuse any label everywhere.
    """
    if np.asarray(sample.outputs[name]).dtype.kind != "f":
        return sample.error[name] == 0
    return math.isfinite(sample.error[name]) and math.isfinite(sample.rms[name])


def _problem(value: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], comparable: bool) -> str:
    """What no tolerance excuses: shape, kind, places of NaN and infinity where torch agrees."""
    if value.shape != truth.shape:
        return f"has shape {value.shape}, the truth has {truth.shape}"
    real = truth.dtype.kind == "f"
    if (value.dtype.kind == "f") != real:
        return f"has the dtype {value.dtype}, the truth has {truth.dtype}"
    if not real or not comparable:
        return ""
    wide = value.astype(np.float64)
    for what, test in (("NaN", np.isnan), ("infinity", np.isinf)):
        differ = test(wide) != test(truth)
        if differ.any():
            return f"has {what} in other places than the truth ({int(differ.sum())} elements)"
    infinite = np.isinf(truth)
    if (wide[infinite] != truth[infinite]).any():
        return "has an infinity of the other sign than the truth"
    return ""


def _error(value: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    finite = np.isfinite(truth)
    wide = np.where(finite, value.astype(np.float64), 0.0)
    error: np.ndarray[Any, Any] = np.abs(wide - np.where(finite, truth, 0.0).astype(np.float64))
    return error


def _root_mean_square(values: np.ndarray[Any, Any]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(np.square(finite.astype(np.float64))))) if finite.size else 0.0


def _pool(roots: list[float], sizes: list[int]) -> float:
    """The RMS of all samples together from the RMS of each."""
    total = sum(sizes)
    squares = sum(size * root**2 for root, size in zip(roots, sizes, strict=True))
    return math.sqrt(squares / total) if total else 0.0


def _scale(truths: list[np.ndarray[Any, Any]]) -> float:
    finite = [np.abs(t[np.isfinite(t)].astype(np.float64)) for t in truths]
    return max((float(t.max(initial=0.0)) for t in finite), default=0.0)


def _place(errors: list[np.ndarray[Any, Any]], usable: list[bool]) -> str:
    tops = [float(error.max(initial=0.0)) for error in errors]
    sample = tops.index(max(tops)) if tops else 0
    if not errors or not errors[sample].size:
        return "no element"
    at = np.unravel_index(int(errors[sample].argmax()), errors[sample].shape)
    number = [index for index, ok in enumerate(usable) if ok][sample]
    return f"sample {number}, element {tuple(int(i) for i in at)}"


def _ratio(error: float, tolerance: float) -> float:
    if tolerance > 0:
        return error / tolerance
    return 0.0 if error == 0 else math.inf


def _result(found: tuple[OutputError, ...], samples: int) -> NumericsResult:
    worst = max(found, key=lambda error: (error.excess > 1, bool(error.unjudged), error.excess))
    verdict = "fail" if worst.excess > 1 else "not_checked" if worst.unjudged else "pass"
    return NumericsResult(
        verdict=verdict,
        max_abs_error=max(error.max_abs for error in found),
        max_rel_error=max(_ratio(error.max_abs, error.scale) for error in found),
        noise_floor=worst.floor_max,
        tolerance=worst.factor * worst.floor_max,
        samples=samples,
        per_output=found,
        worst=str(worst),
    )
