"""Example inputs of a traced model, made of arrays by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opdf_compile.graph import CallArguments, Traced
from opdf_compile.io.evidence.given_rows import filled
from opdf_compile.io.export.calibration import rows_in

# Rows of the user's own data that check data takes its samples of, and samples at most.
_ROWS, _MOST_SAMPLES = 64, 16


def samples_of(traced: Traced, batches: Sequence[Mapping[str, Any]]) -> list[CallArguments]:
    """The example of a traced model; in its place a choice of batches where there are any.

    They are taken evenly from all of them, because a file may be sorted.
    """
    if not batches:
        return [(traced.args, traced.kwargs)]
    rows = max(1, rows_in(batches[0]))
    wanted = min(len(batches), _MOST_SAMPLES, -(-_ROWS // rows))
    chosen = [batches[index * len(batches) // wanted] for index in range(wanted)]
    return [example_with(traced, batch) for batch in chosen]


def example_with(traced: Traced, inputs: Mapping[str, Any]) -> CallArguments:
    """The example of a traced model with a sample's arrays in the place of its tensors."""
    return filled((traced.args, traced.kwargs), [inputs[name] for name in traced.input_names])
