"""What no tolerance excuses: another shape or dtype, NaN or infinity in other places."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def problem_of(value: Array, truth: Array, dtype: str, comparable: bool) -> tuple[str, Any]:
    """Compare kind and places of one sample.

    Args:
        value: What the candidate computed.
        truth: What is right.
        dtype: What the torch model returns there; empty where the check data does not say.
        comparable: Whether torch in the exported dtype has its NaNs where the truth has them.

    Returns:
        A sentence, empty if there is no problem, and the mask of elements it is about, or None.
    """
    if truth.dtype.kind == "c":
        return "is complex, which ONNX cannot return; return torch.view_as_real of it", None
    if value.shape != truth.shape:
        return f"has shape {value.shape}, the truth has {truth.shape}", None
    real = truth.dtype.kind == "f"
    name = value.dtype.name
    if (value.dtype.kind in "fV") != real or (not real and value.dtype != truth.dtype):
        return f"has the dtype {name}, the truth has {truth.dtype}", None
    # The runner widens bfloat16, which numpy does not have.
    widened = dtype == "bfloat16" and name == "float32"
    if real and dtype and name != dtype and not widened:
        return f"has the dtype {name}, the torch model returns {dtype}", None
    if not real or not comparable:
        return "", None
    return _special(value.astype(np.float64), truth)


def _special(wide: Array, truth: Array) -> tuple[str, Any]:
    for what, test in (("NaN", np.isnan), ("infinity", np.isinf)):
        differ = test(wide) != test(truth)
        if differ.any():
            count = int(differ.sum())
            return f"has {what} in other places than the truth ({count} elements)", differ
    infinite = np.isinf(truth)
    differ = infinite & (wide != truth)
    return (
        ("has an infinity of the other sign than the truth", differ) if differ.any() else ("", None)
    )
