"""The rows that an int8 export is calibrated with, in batches of the example's size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from opdf_compile.artefacts import read_rows
from opdf_compile.errors import InputError
from opdf_compile.graph import AxisNames, Traced
from opdf_compile.io.evidence.given_rows import Samples, ports_of

Feed = dict[str, Any]

_WORDS = "the calibration rows"


def batches_of(traced: Traced, calibration: Samples | None, axes: AxisNames) -> list[Feed]:
    """The batches for a traced model; none without calibration rows.

    Args:
        traced: It has example inputs.
        calibration: An `.npz` file, or arrays by input name, as rows of one's own are given
            elsewhere (`read_rows`); labels are ignored.
        axes: The names of the inputs in the file, in order, each with those of its free axes.

    Raises:
        InputError: The rows do not fit the model, or are no finite numbers.
        ArtefactError: The file does not exist.
    """
    if calibration is None:
        return []
    ports, size = ports_of((traced.args, traced.kwargs), axes)
    if not ports:
        raise InputError(f"the model has no input, so {_WORDS} say nothing of it; leave int8 out")
    found = [dict(batch.inputs) for batch in read_rows(calibration, ports, size, words=_WORDS)]
    for name, array in (item for batch in found for item in batch.items()):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(
                f"{name!r} of {_WORDS} holds NaN or infinity, wanted finite numbers: their least "
                "and greatest are the range of int8; leave such rows out"
            )
    return found


def rows_in(batch: Mapping[str, Any]) -> int:
    """How many rows a batch has."""
    return max((len(array) for array in batch.values() if np.ndim(array)), default=1)
