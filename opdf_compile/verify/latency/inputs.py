"""Inputs for the latency measurement: the check data's first sample, else drawn from the model.

Drawn inputs have the declared types and sizes. Where a size is left open, the first axis and every
axis named after the batch is 1, the height and width of images are 224, any other axis is 64; equal
names get equal sizes. Floats are normal; integers are 0 or 1, which are valid ids of any vocabulary
and valid masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opdf_compile.errors import InputError

BATCH, IMAGE, LENGTH = 1, 224, 64


def latency_inputs(session: Any, check: Path | None, rng: np.random.Generator) -> dict[str, Any]:
    """Arrays by input name.

    Args:
        session: An onnxruntime session of the candidate.
        check: Its check data, or None.
        rng: Where drawn values come from.

    Raises:
        ArtefactError: The check data cannot be read.
        InputError: An input is of a type that cannot be drawn.
    """
    if check is not None:
        from opdf_compile.io.check_data import read_check

        return dict(read_check(check).samples[0].inputs)
    sizes: dict[str, int] = {}
    return {
        value.name: _draw(value.name, value.type, _sizes(value.shape, sizes), rng)
        for value in session.get_inputs()
    }


def _sizes(shape: Sequence[int | str | None], known: dict[str, int]) -> tuple[int, ...]:
    sizes = []
    for axis, declared in enumerate(shape):
        if isinstance(declared, int) and declared >= 0:
            sizes.append(declared)
            continue
        name = str(declared or "")
        size = known.get(name, _open_size(name, axis, len(shape)))
        if name:
            known[name] = size
        sizes.append(size)
    return tuple(sizes)


def _open_size(name: str, axis: int, rank: int) -> int:
    if axis == 0 or "batch" in name.lower():
        return BATCH
    return IMAGE if rank == 4 and axis >= 2 else LENGTH


def _draw(name: str, kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    element = kind.removeprefix("tensor(").removesuffix(")")
    if element == "bool":
        return rng.integers(0, 2, size=shape).astype(np.bool_)
    if element in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        return rng.integers(0, 2, size=shape).astype(element)
    floats = {"float": "float32", "double": "float64", "float16": "float16"}
    if element in floats:
        return rng.standard_normal(shape).astype(floats[element])
    if element == "bfloat16":
        import ml_dtypes

        return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    raise InputError(
        f"input {name!r} is a {kind}, and only tensors of numbers or booleans can be drawn; give "
        "check data with inputs for it (check=)"
    )
