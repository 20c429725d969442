"""One output against its truth: the errors, the tolerance, the worst element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from opdf_compile.artefacts import CheckData, Sample
from opdf_compile.parity.numerics.floors import (
    HALF_DTYPES,
    ORDER_FACTOR,
    Floor,
    Peer,
    budget,
    factor,
    own_floor,
    pool,
    root_mean_square,
    scale_of,
)
from opdf_compile.parity.numerics.mismatch import Array, problem_of
from opdf_compile.parity.numerics.numerics_result import (
    Element,
    OutputError,
    unusable,
    urgency,
)


def judge_samples(
    name: str, data: CheckData, values: Sequence[Array], peer: Peer | None = None
) -> OutputError:
    """Judge one output on the user's own rows and on the other samples, each for themselves.

    Their scales may differ by far, and the larger one's rounding would excuse the other's errors.
    The result is that of the part that is closer to its tolerance. Rows of the user's own that
    cannot be judged are told; other samples that cannot, only where there are no such rows.
    """
    users = [sample.is_users for sample in data.samples]
    found = []
    for mine in sorted(set(users)):
        places = [place for place, own in enumerate(users) if own == mine]
        part = replace(data, samples=tuple(data.samples[place] for place in places))
        error = judge_output(name, part, [values[place] for place in places], peer)
        at = error.element
        named = None if at is None else replace(at, sample=places[at.sample])
        found.append(replace(error, element=named))
    *others, last = found
    return max((*(error for error in others if not error.unjudged), last), key=urgency)


def judge_output(
    name: str, data: CheckData, values: Sequence[Array], peer: Peer | None = None
) -> OutputError:
    """Judge what the runtime computed for one output; `peer` has the reference's errors on it."""
    truths = [np.asarray(sample.outputs[name]) for sample in data.samples]
    # Where torch overflows in the exported dtype, its error says nothing about rounding.
    draws = data.random.get(name, "")
    usable = [not draws and _is_measure(sample, name) for sample in data.samples]
    wrong = _problem(name, data, values, truths, usable)
    if wrong is not None:
        return wrong
    kept = [index for index, ok in enumerate(usable) if ok]
    if not kept:
        reason = draws and (
            f"the torch model draws random numbers for it ({draws}); switch that off in "
            "evaluation and export again"
        )
        reason = reason or (
            f"in {data.dtype} the torch model itself overflows there, or decides a tie otherwise"
        )
        return OutputError(name, unjudged=reason)
    samples = [data.samples[index] for index in kept]
    exact = [truths[index] for index in kept]
    errors = [_error(values[index], truths[index]) for index in kept]
    own = own_floor(samples, name, exact, data.dtype)
    rows = sum(sample.rows(name) for sample in samples)
    scale = scale_of(exact)
    largest, rms = _widened(own, peer, scale)
    wide = factor(rows)
    left = math.inf
    if peer is not None and data.dtype in HALF_DTYPES and peer.dtype == data.dtype:
        left = budget(own, peer, rows)
    return OutputError(
        output=name,
        max_abs=max(float(error.max(initial=0.0)) for error in errors),
        rms=pool([root_mean_square(error) for error in errors], [e.size for e in errors]),
        scale=scale,
        floor_max=largest,
        floor_rms=rms,
        factor=wide,
        element=_worst(name, kept, errors, values, truths, wide * largest),
        rows=rows,
        own_rms=own.rms,
        budget_rms=left,
    )


def _widened(own: Floor, peer: Peer | None, scale: float) -> tuple[float, float]:
    if peer is None:
        return own.largest, own.rms
    # Capped, because a reference that is wrong itself must not excuse a wrong candidate.
    return (
        max(own.largest, min(peer.max_rel * scale, ORDER_FACTOR * own.largest)),
        max(own.rms, min(peer.rms_rel * scale, ORDER_FACTOR * own.rms)),
    )


def _problem(
    name: str,
    data: CheckData,
    values: Sequence[Array],
    truths: Sequence[Array],
    usable: Sequence[bool],
) -> OutputError | None:
    dtype = data.output_dtypes.get(name, "")
    for index, (value, truth, ok) in enumerate(zip(values, truths, usable, strict=True)):
        sentence, differ = problem_of(value, truth, dtype, ok)
        if not sentence:
            continue
        at = None if differ is None else np.unravel_index(int(differ.argmax()), differ.shape)
        element = None if at is None else _element(name, index, at, value, truth, math.inf, 0.0)
        return unusable(name, sentence, element)
    return None


def _is_measure(sample: Sample, name: str) -> bool:
    """Whether torch's error in a sample says anything about the candidate's.

    An infinite one would allow everything. An integer output that torch itself gets wrong is a
    near tie, and its distance (7 labels) is no noise: it would excuse any label everywhere.
    """
    if np.asarray(sample.outputs[name]).dtype.kind != "f":
        return sample.error[name] == 0
    return math.isfinite(sample.error[name]) and math.isfinite(sample.rms[name])


def _error(value: Array, truth: Array) -> Array:
    if truth.dtype.kind != "f":
        # Integers beyond 2^53 differ by 1 without differing in float64.
        gap = np.abs(value.astype(np.float64) - truth.astype(np.float64))
        return np.where(value == truth, 0.0, np.maximum(gap, 1.0))
    finite = np.isfinite(truth)
    wide = np.where(finite, value.astype(np.float64), 0.0)
    error: Array = np.abs(wide - np.where(finite, truth, 0.0).astype(np.float64))
    return error


def _worst(
    name: str,
    kept: Sequence[int],
    errors: Sequence[Array],
    values: Sequence[Array],
    truths: Sequence[Array],
    tolerance: float,
) -> Element | None:
    # The worst by its absolute error, over all samples: what a reader can look up in both files.
    tops = [float(error.max(initial=0.0)) for error in errors]
    place = tops.index(max(tops))
    if not errors[place].size:
        return None
    at = np.unravel_index(int(errors[place].argmax()), errors[place].shape)
    sample = kept[place]
    return _element(name, sample, at, values[sample], truths[sample], tops[place], tolerance)


def _element(
    name: str, sample: int, at: Any, value: Array, truth: Array, error: float, tolerance: float
) -> Element:
    index = tuple(int(i) for i in at)
    return Element(name, sample, index, float(value[index]), float(truth[index]), error, tolerance)
