"""Rows whose arrays fit together, on which a metric is called at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opdf_compile.parity.metric.rows import UserRows

Outputs = Mapping[str, Any]


class RowGroup:
    """Rows of equal shapes, and what each side computes on them.

    Attributes:
        samples: Inputs and labels by name, the rows on the first axis; a number without axes is
            that of all these rows.
        sides: By side, the outputs by name, likewise.
        rows: How many rows there are.
    """

    def __init__(self, samples: Outputs, sides: Mapping[str, Outputs], rows: int) -> None:
        self.samples, self.sides, self.rows = samples, sides, rows

    def drawn(self, places: Any, side: str) -> tuple[Outputs, Outputs]:
        """A side's outputs and the samples at some rows; new arrays, which a metric may change."""
        return _taken(self.sides[side], places), _taken(self.samples, places)


def grouped(rows: UserRows, sides: Mapping[str, Sequence[Outputs]]) -> list[RowGroup]:
    """The rows in as few groups as their arrays allow.

    Args:
        rows: The user's rows.
        sides: By side, the outputs of each batch; those that all batches have are kept.
    """
    sides = {side: _common(outputs) for side, outputs in sides.items()}
    members: dict[tuple[Any, ...], list[int]] = {}
    for place, batch in enumerate(rows.batches):
        arrays = [batch.inputs, batch.labels, *(outputs[place] for outputs in sides.values())]
        fits = tuple((n, *_fit(np.asarray(a))) for held in arrays for n, a in sorted(held.items()))
        members.setdefault(fits, []).append(place)
    return [
        RowGroup(
            _joined([{**rows.batches[p].inputs, **rows.batches[p].labels} for p in places]),
            {side: _joined([outputs[p] for p in places]) for side, outputs in sides.items()},
            sum(rows.batches[p].rows for p in places),
        )
        for places in members.values()
    ]


def _common(outputs: Sequence[Outputs]) -> list[Outputs]:
    # An axis that is no batch may be as long as a batch, and the last batch may be shorter.
    names = set.intersection(*(set(found) for found in outputs))
    return [{name: found[name] for name in found if name in names} for found in outputs]


def _fit(array: Any) -> tuple[Any, ...]:
    """What arrays have in common that stand for each other's rows: a number belongs to its own."""
    if not array.ndim:
        return (array.dtype.str, array.tobytes())
    # Joined to texts, numbers would become texts; joined to other floats they stay numbers.
    return (array.dtype.kind, array.shape[1:])


def _joined(parts: Sequence[Outputs]) -> dict[str, Any]:
    return {
        name: np.concatenate([part[name] for part in parts]) if np.ndim(first) else first
        for name, first in parts[0].items()
    }


def _taken(arrays: Outputs, places: Any) -> dict[str, Any]:
    return {
        name: np.array(array[places]) if np.ndim(array) else array for name, array in arrays.items()
    }
