"""When two sides compute one function: rounding is that of the files, not that of the arrays."""

from __future__ import annotations

import numpy as np
import pytest

from opdf_compile.artefacts import Interface, Port
from opdf_compile.parity.metric.one_function import is_one_function


def face(output: str, weights: str) -> Interface:
    return Interface((), (Port("y", output, ("b", 3)),), weights)


def outputs(off: float = 0.0) -> dict[str, np.ndarray]:
    """Numbers up to 2, in float32 as runtimes give back bfloat16 too."""
    return {"y": np.array([[2.0, -1.0, 0.5 + off]], np.float32)}


ROUNDING = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.mark.parametrize("dtype", ROUNDING)
def test_rounding_is_that_of_the_output_or_of_the_weights(dtype: str) -> None:
    # Of 2, the largest number: two roundings, and more than the root of one.
    near, far = outputs(4 * ROUNDING[dtype]), outputs(2.2 * ROUNDING[dtype] ** 0.5)
    for files in (face(dtype, dtype), face("float32", dtype)):
        assert is_one_function(near, outputs(), files)
        assert not is_one_function(far, outputs(), files)


def test_two_roundings_of_bfloat16_are_another_function_in_float32() -> None:
    moved = outputs(4 * ROUNDING["bfloat16"])
    assert not is_one_function(moved, outputs(), face("float32", "float32"))
    assert is_one_function(moved, outputs(), face("bfloat16", "bfloat16"))


def test_no_output_and_other_outputs_are_no_function() -> None:
    plain = face("float32", "float32")
    assert is_one_function(outputs(), outputs(), plain)
    assert not is_one_function({}, {}, plain)
    assert not is_one_function(outputs(), {}, plain)
    assert not is_one_function(outputs(), {"y": outputs()["y"][:, :2]}, plain)


def test_integers_are_compared_as_they_are() -> None:
    ids, other = {"y": np.array([3, 4])}, {"y": np.array([3, 5])}
    assert is_one_function(ids, ids, face("int64", "bfloat16"))
    assert not is_one_function(ids, other, face("int64", "bfloat16"))
