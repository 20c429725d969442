"""Whether two sides compute one function on some rows, so that equal scores need no luck."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from opdf_compile.artefacts import Interface

Outputs = Mapping[str, Any]

# Of float64 and of what is no float, which is compared as it is.
_FINEST = 2.0**-52
_ROUNDING = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def is_one_function(ours: Outputs, theirs: Outputs, interface: Interface) -> bool:
    """Whether outputs differ by rounding alone: half of the digits are left to it.

    Args:
        ours: The candidate's outputs by name.
        theirs: The other side's.
        interface: The candidate's. Arrays do not say what they were rounded to: bfloat16 comes in
            float32, and a half file may give its numbers back in float32.
    """
    if not ours or ours.keys() != theirs.keys():
        return False
    rounding = {
        port.name: max(_ROUNDING.get(dtype, _FINEST) for dtype in (port.dtype, interface.dtype))
        for port in interface.outputs
    }
    return all(_near(ours[name], theirs[name], rounding[name]) for name in ours)


def _near(ours: Any, theirs: Any, rounding: float) -> bool:
    if ours.shape != theirs.shape or ours.dtype.kind != theirs.dtype.kind:
        return False
    if ours.dtype.kind != "f":
        return bool((ours == theirs).all())
    largest = float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0))
    room = rounding**0.5 * largest
    return bool(np.allclose(ours, theirs, rtol=0.0, atol=room, equal_nan=True))
