"""What a metric may give back: any array of real numbers, and nothing that loses a part as one."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from opdf_compile.errors import InputError
from opdf_compile.parity.metric.function import Metric

OUTPUTS = {"y": np.zeros((4, 2))}

NUMBERS: dict[str, Any] = {
    "a tensor with a gradient": torch.tensor([1.0, 0, 1, 0.5], requires_grad=True),
    "a tensor of bfloat16": torch.tensor([1.0, 0, 1, 0.5]).bfloat16(),
    "an array of bfloat16": np.array([1.0, 0, 1, 0.5], ml_dtypes.bfloat16),
    "a list": [1, 0.0, True, 0.5],
    "fractions": [Fraction(1), Fraction(0), Fraction(1), Fraction(1, 2)],
}
NO_NUMBERS: dict[str, tuple[Any, str]] = {
    "complex": (np.ones(4) * 1j, "gave values of the dtype complex128, wanted one number"),
    "one complex number": (1j, "gave a complex, wanted one number"),
    "large integers": ([10**400] * 4, "gave a list .*too large.*, wanted one number"),
    "texts": (["0.5"] * 4, "gave texts, wanted one number"),
    "dates": (
        np.zeros(4, "datetime64[s]"),
        r"gave values of the dtype datetime64\[s\], wanted one number",
    ),
    "records": (np.zeros(4, [("a", "f4")]), "gave values of the dtype void32, wanted one number"),
    "ragged": ([[1.0], [1.0, 2.0]], "gave a list .*, wanted one number"),
    "tensors with gradients": (
        [torch.ones(1, requires_grad=True), torch.ones(2)],
        "gave a list .*, wanted one number",
    ),
    "sparse": (torch.ones(4).to_sparse(), "gave a Tensor .*, wanted one number"),
    "a dictionary": ({"score": 1.0}, "gave a dict .*, wanted one number"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers(case: str) -> None:
    found = Metric("m", lambda o, s: NUMBERS[case])(OUTPUTS, {}, 4)
    assert found.dtype == np.float64 and found.tolist() == [1.0, 0.0, 1.0, 0.5]


@pytest.mark.parametrize("case", NO_NUMBERS)
def test_no_numbers(case: str) -> None:
    given, sentence = NO_NUMBERS[case]
    with pytest.raises(InputError, match=f"the metric m {sentence}") as found:
        Metric("m", lambda o, s: given)(OUTPUTS, {}, 4)
    assert "\n" not in str(found.value)
