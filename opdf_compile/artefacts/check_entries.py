"""Single entries of check data: how arrays are stored, and what an entry must hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_BFLOAT16 = "bfloat16"
_LABEL = re.compile(r"(s\d+)\.label\.(.+)", re.ASCII | re.DOTALL)
# numpy's letters: truth values, integers, floats and complex numbers.
_NUMBERS = frozenset("biufc")


def stored(key: str, value: Any) -> dict[str, Any]:
    """The entries of an array; npz has no bfloat16: its bits travel as uint16 with a note."""
    if value.dtype.name != _BFLOAT16:
        return {key: value}
    return {key: value.view(np.uint16), f"{key}.dtype": np.array(_BFLOAT16)}


def numbers_among(arrays: Mapping[str, Any], key: str) -> Any:
    """What `stored` put there.

    Raises:
        KeyError: Nothing is there.
        ValueError: It holds no numbers, which no runtime takes and nothing compares with.
    """
    array = arrays[key]
    bfloat16 = str(arrays.get(f"{key}.dtype", "")) == _BFLOAT16
    if array.dtype.kind not in _NUMBERS or (bfloat16 and array.dtype != np.uint16):
        raise ValueError(f"its entry {key!r} holds {array.dtype}, no numbers that a model takes")
    if not bfloat16:
        return array
    import ml_dtypes

    return array.view(ml_dtypes.bfloat16)


def labels_among(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By sample, the labels of its rows; only their keys say what they are called."""
    found: dict[str, dict[str, Any]] = {}
    for key, array in arrays.items():
        match = _LABEL.fullmatch(key)
        if match:
            found.setdefault(match[1], {})[match[2]] = array
    return found


def function_errors(
    arrays: Mapping[str, Any], key: str, outputs: tuple[str, ...]
) -> dict[str, tuple[float, float]]:
    """By output, how far a sample's moves by roundings of functions, where that was stored."""
    found = {}
    for name in outputs:
        pair = arrays.get(f"{key}.function.{name}")
        if pair is not None:
            largest, mean = (float(value) for value in pair)
            found[name] = (largest, mean)
    return found
