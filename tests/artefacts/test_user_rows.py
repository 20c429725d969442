"""Rows of the user's own: what is read, and what no array can be made of."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from opdf_compile.artefacts import Port, plain_array, read_rows
from opdf_compile.errors import InputError

PORTS = [Port("x", "float32", ("batch", 3))]
ROWS = np.arange(12.0).reshape(4, 3)

TENSORS: dict[str, torch.Tensor] = {
    "bfloat16": torch.from_numpy(ROWS).bfloat16(),
    "with a gradient": torch.from_numpy(ROWS).requires_grad_(),
    "bfloat16 with a gradient": torch.from_numpy(ROWS).bfloat16().requires_grad_(),
}


@pytest.mark.parametrize("case", TENSORS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_are_rows(case: str, dtype: str) -> None:
    """Small whole numbers, which every dtype holds."""
    (batch,) = read_rows({"x": TENSORS[case], "y": TENSORS[case]}, [Port("x", dtype, ("b", 3))], 4)
    assert batch.inputs["x"].dtype.name == dtype
    for array in (batch.inputs["x"], batch.labels["y"]):
        assert np.array_equal(array.astype(np.float64), ROWS)


def test_bfloat16_keeps_its_bits() -> None:
    tensor = torch.tensor([1.0039, -3.3e38, float("inf"), 1e-40]).bfloat16()
    found = plain_array(tensor)
    assert found.dtype == ml_dtypes.bfloat16
    assert np.array_equal(found.view(np.uint16), tensor.view(torch.uint16).numpy())


NO_ARRAY: dict[str, Any] = {
    "ragged": [[1.0, 2.0], [1.0]],
    "ragged tensors": [torch.zeros(2, requires_grad=True), torch.zeros(1)],
    "sparse": torch.zeros(2, 3).to_sparse(),
    "without memory": torch.zeros(2, 3, device="meta"),
}


@pytest.mark.parametrize("case", NO_ARRAY)
@pytest.mark.parametrize("name", ["x", "label"])
def test_what_makes_no_array_is_refused(name: str, case: str) -> None:
    given = {"x": ROWS} | {name: NO_ARRAY[case]}
    with pytest.raises(
        InputError, match=f"'{name}' of the samples is a .* makes no array"
    ) as found:
        read_rows(given, PORTS, 2)
    assert "\n" not in str(found.value)


def test_the_sentence_says_which_rows_they_are() -> None:
    with pytest.raises(InputError, match="'x' of the calibration rows is a list"):
        read_rows({"x": [[1.0], []]}, PORTS, 2, words="the calibration rows")


def test_a_first_axis_of_none_takes_no_row() -> None:
    ports = [Port("x", "float32", (0, 3))]
    with pytest.raises(InputError, match="the inputs x are fixed to 0, so that the model takes no"):
        read_rows({"x": ROWS}, ports, 2)


def test_an_example_without_rows_takes_one_at_once() -> None:
    batches = read_rows({"x": ROWS}, PORTS, 0)
    assert [batch.rows for batch in batches] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("dtype", "number", "told"), [("float16", 7e4, "70000"), ("float32", -1e39, "1e\\+39")]
)
def test_a_number_that_would_become_infinite_is_refused(
    dtype: str, number: float, told: str
) -> None:
    """The largest one is named; what was infinite before is the user's own, and stays."""
    port = Port("x", dtype, ("batch", 3))
    rows = np.where(ROWS == 5.0, number, ROWS)
    with pytest.raises(InputError, match=f"'x' .* holds {told}, which {dtype} has no room for"):
        read_rows({"x": rows}, [port], 4)
    (batch,) = read_rows({"x": np.where(ROWS == 5.0, np.inf, ROWS)}, [port], 4)
    assert np.isinf(batch.inputs["x"]).sum() == 1
