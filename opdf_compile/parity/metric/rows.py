"""The user's rows, what the torch model computes on them, and what a file does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from opdf_compile.artefacts import CheckData, RowBatch, Sample, read_rows, row_of
from opdf_compile.errors import InputError
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.runtime.inputs import by_name
from opdf_compile.parity.runtime.protocol import Device, RunFailed

Arrays = Mapping[str, Any]
Samples = Mapping[str, Any] | PathLike
# Rows at once where no check data says what the model's example was.
_BATCH = 16


@dataclass(frozen=True, eq=False)
class UserRows:
    """Rows, and what is known of them.

    Attributes:
        batches: What is run at once.
        check: The candidate's check data; its rows of the user's own have outputs and a truth.
    """

    batches: tuple[RowBatch, ...]
    check: CheckData | None

    @property
    def count(self) -> int:
        """How many rows there are."""
        return sum(batch.rows for batch in self.batches)

    @cached_property
    def unknown(self) -> int:
        """How many rows are not in the check data, so that nothing says what is right there."""
        return sum(place is None for places in self._places for place in places)

    @cached_property
    def torch_outputs(self) -> list[dict[str, Any]] | None:
        """What the torch model computes, by batch and output; None where a row is unknown."""
        if self.unknown:
            return None
        return [_gathered([p for p in places if p is not None]) for places in self._places]

    @cached_property
    def _places(self) -> list[list[tuple[Sample, int] | None]]:
        """Where in the check data each row is."""
        known: dict[bytes, tuple[Sample, int]] = {}
        names = () if self.check is None else self.check.input_names
        for sample in () if self.check is None else self.check.samples:
            if sample.is_users:
                for row in range(_row_count(sample.inputs)):
                    known[_digest(sample.inputs, names, row)] = (sample, row)
        return [
            [known.get(_digest(batch.inputs, names, row)) for row in range(batch.rows)]
            for batch in self.batches
        ]


def user_rows(
    samples: Samples | None, candidate: ModelFile, check: CheckData | None
) -> UserRows | None:
    """The rows that were given, else those of the check data; None where there are none.

    Raises:
        InputError: The samples do not fit the candidate.
        ArtefactError: The file does not exist.
    """
    if samples is not None:
        size = _BATCH if check is None else _row_count(check.samples[0].inputs)
        return UserRows(read_rows(samples, candidate.interface.inputs, size), check)
    held = [sample for sample in (check.samples if check else ()) if sample.is_users]
    batches = tuple(RowBatch(s.inputs, s.labels, _row_count(s.inputs)) for s in held)
    return UserRows(batches, check) if batches else None


def outputs_of(
    model: ModelFile, batches: Sequence[RowBatch], device: Device, names: Sequence[str]
) -> list[dict[str, Any]]:
    """What a file computes, by batch, of outputs that have the rows on their first axis.

    Args:
        model: The file.
        batches: Under the candidate's names; by position where the file has others.
        device: Where to run.
        names: The candidate's outputs.

    Raises:
        InputError: The file does not run on the rows.
        DeviceError: The runtime cannot load it.
    """
    runner = device.runtime.load(model, device)
    called = dict(zip(runner.output_names, names, strict=False))
    if set(runner.output_names) == set(names):
        called = {name: name for name in names}
    found = []
    for batch in batches:
        try:
            values = runner(by_name(runner.input_names, batch.inputs))
        except RunFailed as error:
            raise InputError(
                f"{device.runtime.name} cannot run {model} on the samples ({error.reason}), wanted "
                "rows that the file takes; export it again, or try another --device"
            ) from error
        found.append(
            {
                called[name]: value
                for name, value in values.items()
                if name in called and np.shape(value)[:1] == (batch.rows,)
            }
        )
    return found


def _row_count(inputs: Arrays) -> int:
    return max((len(array) for array in inputs.values() if np.ndim(array)), default=1)


def _digest(inputs: Arrays, names: Sequence[str], row: int) -> bytes:
    made = hashlib.sha256()
    for name in names:
        array = np.asarray(row_of(inputs[name], row))
        made.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        made.update(array.tobytes())
    return made.digest()


def _gathered(places: Sequence[tuple[Sample, int]]) -> dict[str, Any]:
    """The outputs of some rows, stacked; bfloat16 widened as runtimes do it."""
    samples = list(dict.fromkeys(sample for sample, _ in places))
    # An axis that is no batch may be as long as one of the samples.
    names = [name for name in samples[0].computed if _has_rows(name, samples)]
    return {n: _widened(np.stack([s.computed[n][row] for s, row in places])) for n in names}


def _has_rows(name: str, samples: Sequence[Sample]) -> bool:
    """Whether an output has the rows on its first axis in all samples, of one shape each."""
    found = [(np.shape(s.computed.get(name, 0)), _row_count(s.inputs)) for s in samples]
    return all(shape[:1] == (rows,) for shape, rows in found) and (
        len({shape[1:] for shape, _ in found}) == 1
    )


def _widened(array: Any) -> Any:
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
