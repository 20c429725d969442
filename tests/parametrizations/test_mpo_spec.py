"""Specs as JSON: a round trip, and a sentence for every way to be wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from opdf_compile.errors import PlanError
from opdf_compile.parametrizations.matrix_spec import WeightForm
from opdf_compile.parametrizations.registry import registered

MPO = registered("mpo")

GOOD: dict[str, Any] = {
    "shape": [48, 30],
    "dtype": "float32",
    "transposed": False,
    "out_modes": [8, 1, 6],
    "in_modes": [6, 1, 5],
    "bonds": [1, 30, 30, 1],
}


def test_round_trip_through_text() -> None:
    for spec in MPO.candidates(WeightForm((16, 6, 3, 3), dtype="bfloat16", kernel=9)):
        text = json.dumps(MPO.spec_to_json(spec))
        assert MPO.spec_from_json(json.loads(text)) == spec


def test_the_json_form() -> None:
    assert MPO.spec_to_json(MPO.spec_from_json(GOOD)) == GOOD


def test_bonds_may_be_left_out() -> None:
    data = {key: value for key, value in GOOD.items() if key != "bonds"}
    assert MPO.spec_from_json(data) == MPO.spec_from_json(GOOD)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bonds": [1, 8, 8, 1]}, r"OPDF never truncates: the full bonds .* \[1, 30, 30, 1\]"),
        ({"out_modes": [8, 1, 5]}, r"out_modes \[8, 1, 5\] multiply to 40, .* wants 48"),
        ({"in_modes": [6, 1, 6]}, r"in_modes \[6, 1, 6\] multiply to 36, .* wants 30"),
        ({"transposed": True}, "multiply to 48, .* wants 30"),
        ({"out_modes": [8, 6]}, "found 2 out_modes and 3 in_modes"),
        ({"out_modes": [8, 1, 6.0]}, "out_modes must be a list of positive integers"),
        ({"out_modes": [8, True, 6]}, "out_modes must be a list of positive integers"),
        ({"in_modes": [6, 0, 5]}, "in_modes must be a list of positive integers"),
        ({"in_modes": "615"}, "in_modes must be a list of positive integers"),
        ({"out_modes": [48], "in_modes": [30]}, "2 to 64 cores are wanted, found 1"),
        ({"out_modes": [48] + [1] * 64, "in_modes": [30] + [1] * 64}, "64 cores .* found 65"),
        ({"shape": [48]}, "two axes or more"),
        ({"shape": [48, -30]}, "shape must be a list of positive integers"),
        ({"shape": [2**30, 2**30]}, r"larger than 2\^40 entries"),
        ({"shape": 48}, "shape must be a list of positive integers, found 48"),
        ({"dtype": "int8"}, "dtype is 'int8'; an MPO weight has one of float16"),
        ({"dtype": 32}, "dtype must be a string"),
        ({"transposed": 0}, "transposed true or false"),
        ({"rank": 3}, "unknown keys: rank; remove them, it has shape, .*, in_modes, bonds"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        MPO.spec_from_json({**GOOD, **change})


def test_missing_keys_are_named() -> None:
    with pytest.raises(PlanError, match="lacks out_modes, in_modes; it needs shape"):
        MPO.spec_from_json({key: GOOD[key] for key in ("shape", "dtype", "transposed")})


@pytest.mark.parametrize("data", [None, [], "mpo", 3])
def test_only_objects_are_specs(data: Any) -> None:
    with pytest.raises(PlanError, match="an MPO spec is a JSON object"):
        MPO.spec_from_json(data)
