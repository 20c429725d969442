"""Inputs for the latency measurement: the check data's first sample, or arrays of a wanted shape.

Where check data is at hand, arrays of another shape are filled with values of its own arrays: ids
then stay below the vocabulary size and masks stay masks. Otherwise floats are normal, and integers
are 0 or 1, which are valid ids of any vocabulary and valid masks.

A size that is left open is that of the check data's sample, else a usual one: 1 for the first axis
and for every axis named after the batch, 224 for the height and width of images, 64 for any other.
Equal names get equal sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opdf_compile.artefacts import as_floats, read_check
from opdf_compile.errors import InputError
from opdf_compile.parity.latency.shape_option import Declared, Shape, fit_shapes

BATCH, IMAGE, LENGTH = 1, 224, 64

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_FLOATS = ("float16", "float32", "float64")


def latency_inputs(
    declared: Sequence[Declared],
    check: Path | None,
    rng: np.random.Generator,
    *,
    asked: Mapping[str, Shape] | None = None,
    model: Path = Path("the model"),
) -> dict[str, Any]:
    """Arrays by input name, for one shape.

    Args:
        declared: The candidate's inputs.
        check: Its check data, or None.
        rng: Where drawn values come from.
        asked: Shapes of some inputs; None takes the check data's first sample as it is.
        model: The candidate's file, for messages.

    Raises:
        ArtefactError: The check data cannot be read.
        InputError: An input is of a type that cannot be drawn, or a shape does not fit the model.
    """
    sample: dict[str, Any] = {}
    if check is not None:
        # A file that was converted to half precision after export wants its inputs in that.
        dtypes = {value.name: value.dtype for value in declared}
        first = read_check(check).samples[0].inputs
        sample = {name: as_floats(a, dtypes.get(name, "")) for name, a in first.items()}
        if asked is None:
            return sample
    given = asked or {}
    sizes = fit_shapes(given, declared, model)
    arrays = {}
    for value in declared:
        like = sample.get(value.name)
        shape = given.get(value.name) or _sizes(value, sizes, like)
        arrays[value.name] = _draw(value, shape, rng) if like is None else _refill(like, shape, rng)
    return arrays


def _sizes(value: Declared, known: dict[str, int], like: Any) -> Shape:
    """Sizes of an input that was not asked for; `known` learns the named axes it meets."""
    follows = like is not None and np.ndim(like) == len(value.axes)
    sizes = []
    for index, axis in enumerate(value.axes):
        if isinstance(axis, int):
            sizes.append(axis)
            continue
        name = axis or ""
        usual = like.shape[index] if follows else _open_size(name, index, len(value.axes))
        size = known.get(name, usual)
        if name:
            known[name] = size
        sizes.append(size)
    return tuple(sizes)


def _open_size(name: str, axis: int, rank: int) -> int:
    if axis == 0 or "batch" in name.lower():
        return BATCH
    return IMAGE if rank == 4 and axis >= 2 else LENGTH


def _refill(like: Any, shape: Shape, rng: np.random.Generator) -> Any:
    """An array of another shape with values that the check data's own array holds."""
    values = np.asarray(like)
    if values.shape == shape or values.size == 0:
        return like
    return values.reshape(-1)[rng.integers(values.size, size=shape)]


def _draw(value: Declared, shape: Shape, rng: np.random.Generator) -> Any:
    if value.dtype == "bool":
        return rng.integers(0, 2, size=shape).astype(np.bool_)
    if value.dtype in _INTEGERS:
        return rng.integers(0, 2, size=shape).astype(value.dtype)
    if value.dtype in _FLOATS:
        return np.asarray(rng.standard_normal(shape)).astype(value.dtype)
    if value.dtype == "bfloat16":
        import ml_dtypes

        return np.asarray(rng.standard_normal(shape)).astype(ml_dtypes.bfloat16)
    raise InputError(
        f"input {value.name!r} holds {value.dtype}, and only tensors of numbers or booleans can be "
        "drawn; give check data with inputs for it (check=)"
    )
