"""What int8 may cost: budgets that are measured on truths and on the untouched student."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from opdf_compile.artefacts import CheckData
from opdf_compile.parity.numerics.floors import (
    DEVIATIONS,
    ORDER_FACTOR,
    pool,
    root_mean_square,
)
from opdf_compile.parity.numerics.mismatch import Array


def truths_of(name: str, data: CheckData) -> list[Array]:
    """What is right for an output, an array per sample."""
    return [np.asarray(sample.outputs[name]) for sample in data.samples]


def allowed_factor(rows: int, reference_rows: int) -> float:
    """How much larger the candidate's relative error may be than the reference's."""
    scatter = math.sqrt((1 / max(rows, 1) + 1 / max(reference_rows, 1)) / 2)
    return ORDER_FACTOR * math.exp(DEVIATIONS * scatter)


def spread_of(truths: Sequence[Array]) -> float:
    """The RMS deviation of a truth from its mean over rows: the error of always answering that."""
    alike: dict[tuple[int, ...], list[Array]] = {}
    for truth in truths:
        alike.setdefault(truth.shape[1:], []).append(np.atleast_1d(truth))
    rows = [np.concatenate(group) for group in alike.values()]
    with np.errstate(invalid="ignore"):  # Of infinities, which are left out of the root.
        off = [_off_the_mean(r) for r in rows]
    # A mean of few rows is closer to them than to others.
    grown = [math.sqrt(len(r) / max(len(r) - 1, 1)) for r in rows]
    roots = [root_mean_square(o) * g for o, g in zip(off, grown, strict=True)]
    return pool(roots, [r.size for r in rows])


def _off_the_mean(rows: Array) -> Array:
    if len(rows) == 1:
        return np.asarray(rows - rows.mean())
    # From the first row on, so that equal rows are off by nothing and not by a mean's rounding.
    moved = rows - rows[:1]
    return np.asarray(moved - moved.mean(axis=0))


def range_of(truths: Sequence[Array]) -> float:
    """From the least to the greatest finite number, 0 included, as a quantiser takes it."""
    finite = [t[np.isfinite(t)] for t in truths]
    least = min(float(t.min(initial=0.0)) for t in finite)
    return max(float(t.max(initial=0.0)) for t in finite) - least
