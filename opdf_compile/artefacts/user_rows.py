"""Rows of the user's own: real inputs, and labels that belong to them.

An npz file, or a mapping, of arrays. An array by the name of an input is that input, its rows on
the first axis; an array of any other name is a label of the rows. `NAME@k` is NAME of sample k,
for rows of several shapes, and a plain NAME beside such ones belongs to every sample. A number
without axes belongs to every row.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opdf_compile.artefacts.interface import Port
from opdf_compile.errors import InputError, first_line, require_type
from opdf_compile.files import DAMAGE, existing_file, read_npz

Arrays = Mapping[str, Any]
_NUMBERED = re.compile(r"(.+)@(\d+)", re.ASCII | re.DOTALL)


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Rows that a model is run on at once.

    Attributes:
        inputs: By input, an array with the rows on its first axis, or a number for all of them.
        labels: Likewise by name.
        rows: How many rows there are.
    """

    inputs: Arrays
    labels: Arrays = field(default_factory=dict)
    rows: int = 1


def numbered(arrays: Arrays, known: Sequence[str]) -> list[dict[str, Any]]:
    """The samples among arrays by name: `NAME@k` is NAME of sample k, a plain NAME that of all.

    Args:
        arrays: At least one.
        known: Names that are whole names although they have the form of a numbered one.
    """
    plain: dict[str, Any] = {}
    by_number: dict[int, dict[str, Any]] = {}
    for key, array in arrays.items():
        found = None if key in known else _NUMBERED.fullmatch(key)
        if found is None:
            plain[key] = array
        else:
            by_number.setdefault(int(found[2]), {})[found[1]] = array
    return [{**plain, **by_number[k]} for k in sorted(by_number)] or [plain]


def read_rows(
    given: Arrays | str | os.PathLike[str],
    ports: Sequence[Port],
    size: int,
    *,
    words: str = "the samples",
) -> tuple[RowBatch, ...]:
    """Read rows, in batches that a model of these inputs takes.

    Args:
        given: An `.npz` file, or arrays by name.
        ports: The model's inputs.
        size: Rows of a batch where the first axis is free; the last batch has what is left.
        words: What they are, for sentences.

    Raises:
        InputError: There are no rows, an input is missing or has another shape or dtype, arrays
            have unequal numbers of rows, or the rest does not fill a batch of fixed size.
        ArtefactError: The file does not exist.
    """
    arrays, source = _arrays(given, words)
    if not arrays:
        wanted = ", ".join(port.name for port in ports) or "labels"
        raise InputError(f"{source} hold no array, wanted {wanted}; add them")
    names = [port.name for port in ports]
    batches: list[RowBatch] = []
    for sample in numbered(arrays, names):
        missing = next((name for name in names if name not in sample), None)
        if missing is not None:
            raise InputError(
                f"{source} lack the input {missing!r} (they hold {', '.join(arrays)}), the model "
                f"takes {', '.join(names)}; name the arrays so"
            )
        rows = _row_count(sample, source)
        fixed = _fixed_batch(ports, words)
        if fixed is not None and rows % fixed:
            raise InputError(
                f"{source} hold {rows} rows and the model takes {fixed} at once, wanted a multiple "
                f"of it; leave out the last {rows % fixed}, or export with a free first axis"
            )
        inputs = {port.name: _fitted(port, sample[port.name], source) for port in ports}
        labels = {name: array for name, array in sample.items() if name not in inputs}
        # A model that was exported with no row in its example still takes rows where they are free.
        batches += _split(inputs, labels, rows, fixed or max(size, 1))
    return tuple(batches)


def row_of(array: Any, row: int) -> Any:
    """One row of an array; a number without axes belongs to all."""
    return array[row] if np.ndim(array) else array


def _arrays(given: Arrays | str | os.PathLike[str], words: str) -> tuple[dict[str, Any], str]:
    wanted = "an .npz file, or arrays by name; numpy.savez(file, NAME=array, ...) writes one"
    require_type(given, (str, os.PathLike, Mapping), words, wanted)
    if isinstance(given, Mapping):
        arrays = {str(name): _given_array(name, array, words) for name, array in given.items()}
        odd = next((name for name, array in arrays.items() if array.dtype.hasobject), None)
        if odd is not None:
            raise InputError(
                f"{odd!r} of {words} holds objects, wanted numbers or texts with the rows on "
                "the first axis; rows of several shapes are NAME@0, NAME@1, ..."
            )
        return arrays, words
    file = existing_file(given, wanted=f"{words.removeprefix('the ')} as .npz")
    try:
        return read_npz(file), f"{words} of {Path(file).name}"
    except DAMAGE as error:
        raise InputError(
            f"{file} holds no arrays ({first_line(error, 160)}); write it with "
            "numpy.savez(file, NAME=array, ...)"
        ) from error


def plain_array(given: Any) -> Any:
    """What a caller gave as an array; bfloat16 as ml_dtypes' type.

    Raises:
        TypeError, ValueError, RuntimeError: It is none.
    """
    if not hasattr(given, "detach"):
        return np.asarray(given)
    # torch's tensors are arrays to numpy once they are detached, on the CPU and no bfloat16.
    tensor = given.detach().cpu()
    if str(tensor.dtype) != "torch.bfloat16":
        return np.asarray(tensor)
    return np.asarray(tensor.float()).astype(_dtype("bfloat16"))


def _given_array(name: Any, given: Any, words: str) -> Any:
    try:
        return plain_array(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{str(name)!r} of {words} is a {type(given).__name__} that makes no array "
            f"({first_line(error, 120)}), wanted numbers or texts with the rows on the first axis; "
            "rows of several shapes are NAME@0, NAME@1, ..."
        ) from error


def _row_count(sample: Arrays, source: str) -> int:
    counts = {name: len(array) for name, array in sample.items() if np.ndim(array)}
    if not counts:
        raise InputError(f"{source} hold numbers without axes, wanted the rows on the first axis")
    (first, rows), *others = counts.items()
    for name, count in others:
        if count != rows:
            raise InputError(
                f"{source} hold {rows} rows of {first!r} and {count} of {name!r}, wanted one "
                "number of rows on the first axis of all; give as many of each"
            )
    if not rows:
        raise InputError(f"{source} hold no row, wanted at least one; add some")
    return rows


def _fixed_batch(ports: Sequence[Port], words: str) -> int | None:
    """How many rows the model takes at once, where that is fixed.

    Raises:
        InputError: Its inputs have first axes of several fixed sizes, which are no rows, or of 0.
    """
    sizes = {p.name: p.axes[0] for p in ports if p.axes and isinstance(p.axes[0], int)}
    if len(set(sizes.values())) > 1:
        raise InputError(
            f"the first axes of the inputs are fixed to {', '.join(map(str, sizes.values()))} "
            f"({', '.join(sizes)}), wanted one number of rows for {words}; leave them out"
        )
    if 0 in sizes.values():
        raise InputError(
            f"the first axes of the inputs {', '.join(sizes)} are fixed to 0, so that the model "
            f"takes no row of {words}; export it with an example of at least one row"
        )
    return next(iter(sizes.values()), None)


def _fitted(port: Port, given: Any, source: str) -> Any:
    """An input in the model's dtype.

    Raises:
        InputError: Its shape or dtype is another one.
    """
    array = np.asarray(given)
    wanted = _dtype(port.dtype)
    # The batch is as large as the rows are many, also where the model takes a part of it at once.
    sizes = tuple(array.shape)
    if port.axes and sizes and isinstance(port.axes[0], int):
        sizes = (port.axes[0], *sizes[1:])
    wrong = port.misfit(sizes)
    # Rounding a float moves all that is compared alike; a changed integer is another input.
    same_kind = _kind(array.dtype) == _kind(wanted)
    with np.errstate(over="ignore"):  # What does not fit is told below.
        cast = array.astype(wanted) if same_kind else array
    if not same_kind or (_kind(wanted) == "integer" and not np.array_equal(cast, array)):
        wrong = wrong or f"the dtype {array.dtype.name}"
    if wrong:
        wrong = wrong.replace(str(sizes), str(tuple(array.shape)))
        raise InputError(
            f"the input {port.name!r} of {source} has {wrong}, the model takes {port}; give it so"
        )
    _require_finite(port, array, cast, source)
    return np.ascontiguousarray(cast) if cast.ndim else cast


def _require_finite(port: Port, given: Any, cast: Any, source: str) -> None:
    """Refuse numbers that the model's dtype has no room for: they would become infinite."""
    if _kind(cast.dtype) != "real" or cast.dtype == given.dtype:
        return
    lost = np.isinf(cast.astype(np.float64)) & np.isfinite(given.astype(np.float64))
    if lost.any():
        largest = float(np.abs(given.astype(np.float64)[lost]).max())
        raise InputError(
            f"the input {port.name!r} of {source} holds {largest:g}, which {cast.dtype.name} has "
            f"no room for, and the model takes {port}; scale it as the model is used, or export "
            "the model in float32"
        )


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        # It registers the name with numpy.
        import ml_dtypes  # noqa: F401
    return np.dtype(name)


def _kind(dtype: np.dtype[Any]) -> str:
    """Which kind of number a dtype holds; ml_dtypes' bfloat16 has the kind V."""
    if dtype.name == "bfloat16":
        return "real"
    return {"f": "real", "i": "integer", "u": "integer", "b": "boolean"}.get(dtype.kind, dtype.kind)


def _split(inputs: Arrays, labels: Arrays, rows: int, size: int) -> Iterator[RowBatch]:
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        cut = slice(start, stop)
        yield RowBatch(
            {name: array[cut] if np.ndim(array) else array for name, array in inputs.items()},
            {name: array[cut] if np.ndim(array) else array for name, array in labels.items()},
            stop - start,
        )
