"""What rounding a model to few bits costs it: its outputs against the truth in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Drop:
    """How far one output is off its truth, over all samples.

    Attributes:
        output: Its name.
        relative_rms: Root mean square of the error over that of the truth; infinity where only
            the truth is zero, or an output is not finite.
        changed: Share of the rows whose largest number stands at another place than in the truth,
            for an output of the shape (rows, classes); None for others.
        rows: How many rows were compared.
        truth_rms: Root mean square of the truth.
    """

    output: str
    relative_rms: float
    changed: float | None
    rows: int
    truth_rms: float

    def to_json(self) -> dict[str, Any]:
        """Its attributes."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"{100 * self.relative_rms:.2g} % off (relative RMS)"
        if self.changed is None:
            return text
        return f"{text}, {100 * self.changed:.2g} % of {self.rows} rows with another largest score"


def drop_of(output: str, truths: Sequence[_Array], values: Sequence[_Array]) -> Drop:
    """Compare what a file computes with what is right.

    Args:
        output: Name of the output.
        truths: What is right, an array per sample.
        values: What was computed, in the same shapes.
    """
    pairs = [
        (np.asarray(t, np.float64), np.asarray(v, np.float64))
        for t, v in zip(truths, values, strict=True)
    ]
    # Where the truth is infinite or no number, as under a mask, the same value is no error.
    gaps = (
        np.subtract(v, t, where=(t != v) & ~(np.isnan(t) & np.isnan(v)), out=np.zeros_like(t))
        for t, v in pairs
    )
    off = sum(float(np.sum(np.square(gap))) for gap in gaps)
    finite = [t[np.isfinite(t)] for t, _ in pairs]
    whole = sum(float(np.sum(np.square(t))) for t in finite)
    rows = sum(t.shape[0] if t.ndim else 1 for t, _ in pairs)
    found = math.sqrt(off / whole) if whole > 0 else (math.inf if off else 0.0)
    scores = all(t.ndim == 2 and t.shape[1] > 1 for t, _ in pairs)
    moved = sum(int((t.argmax(1) != v.argmax(1)).sum()) for t, v in pairs) if scores else None
    return Drop(
        output,
        math.inf if math.isnan(found) else found,
        None if moved is None else moved / max(rows, 1),
        rows,
        math.sqrt(whole / max(sum(t.size for t in finite), 1)),
    )
