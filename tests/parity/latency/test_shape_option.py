"""`--shapes`: what is read, what follows, what is refused and with which sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from opdf_compile.artefacts.check_file import CheckData, Sample, write_check
from opdf_compile.errors import InputError
from opdf_compile.parity.latency.inputs import LENGTH, latency_inputs
from opdf_compile.parity.latency.shape_option import (
    Declared,
    batch_size,
    declared_inputs,
    parse_shapes,
    shape_text,
)

MODEL = Path("student.onnx")
TEXT = (
    Declared("input_ids", "int64", ("batch_size", "sequence_length")),
    Declared("attention_mask", "int64", ("batch_size", "sequence_length")),
    Declared("prefix", "float32", (None, "prefix_length", 8)),
)


def inputs(asked: Any, check: Path | None = None) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return latency_inputs(TEXT, check, rng, asked=asked, model=MODEL)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], ()),
        (["x=4"], ({"x": (4,)},)),
        (["x=1x128,32x128"], ({"x": (1, 128)}, {"x": (32, 128)})),
        (["x=1x3, 2x3"], ({"x": (1, 3)}, {"x": (2, 3)})),
        (["a=1,2", "b=3x4,5x6"], ({"a": (1,), "b": (3, 4)}, {"a": (2,), "b": (5, 6)})),
        (["odd=name=2x2"], ({"odd=name": (2, 2)},)),
    ],
)
def test_shapes_are_read(options: list[str], wanted: tuple[Any, ...]) -> None:
    assert parse_shapes(options) == wanted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["1x128"], "names no input"),
        (["=1x128"], "names no input"),
        (["x="], "wanted sizes from 1 up"),
        (["x=1x0"], "has '1x0'"),
        (["x=1x-2"], "has '1x-2'"),
        (["x=1x128,"], "has ''"),
        (["x=1*128"], "such as 1x128"),
        (["x=1x٣"], "wanted sizes"),
        (["x=99999999999"], "wanted sizes"),
        (["x=1", "x=2"], "'x' twice"),
        (["x=1x2,1x2"], "x=1x2 twice"),
        (["x=1,2", "y=1,2,3"], r"2 of x, 3 of y.*belong together"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(options: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_shapes(options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"ids": (1, 2)}, r"'ids', student.onnx has input_ids, attention_mask, prefix"),
        ({"input_ids": (1, 2, 3)}, r"1x2x3 of 3 axes.*batch_sizexsequence_length\) with 2"),
        ({"prefix": (1, 2, 9)}, r"fixes its axis 2 at 8; give 8"),
        (
            {"input_ids": (1, 2), "attention_mask": (1, 3)},
            r"axis sequence_length 2 long.*equal sizes",
        ),
    ],
)
def test_shapes_that_do_not_fit_the_model(asked: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        inputs(asked)


def test_inputs_that_are_not_named_follow_shared_axes() -> None:
    found = inputs({"input_ids": (3, 17)})
    assert found["input_ids"].shape == found["attention_mask"].shape == (3, 17)
    assert found["prefix"].shape == (1, LENGTH, 8)


@pytest.fixture
def check(tmp_path: Path) -> Path:
    """A sample with ids up to 30,000, a whole mask, and a prefix of 5."""
    values = {
        "input_ids": np.array([[101, 29999, 102]], np.int64),
        "attention_mask": np.ones((1, 3), np.int64),
        "prefix": np.full((2, 5, 8), 0.25, np.float32),
    }
    path = tmp_path / "x.check.npz"
    numbers = {"y": 0.0}
    sample = Sample(values, {"y": np.zeros(1)}, numbers, numbers, numbers)
    write_check(path, CheckData(tuple(values), ("y",), "float32", (sample,)))
    return path


def test_values_are_those_of_the_check_data(check: Path) -> None:
    """An id that the sample never held could be beyond the vocabulary."""
    found = inputs({"input_ids": (4, 50)}, check)
    assert set(np.unique(found["input_ids"])) == {101, 102, 29999}
    assert (found["attention_mask"] == 1).all()
    assert found["attention_mask"].shape == (4, 50)
    assert found["prefix"].shape == (2, 5, 8)
    assert {name: array.dtype.name for name, array in found.items()} == {
        "input_ids": "int64",
        "attention_mask": "int64",
        "prefix": "float32",
    }


def test_without_a_shape_the_sample_is_taken_as_it_is(check: Path) -> None:
    assert inputs(None, check)["input_ids"].tolist() == [[101, 29999, 102]]


def test_declared_inputs_are_those_a_caller_must_give() -> None:
    values = [
        helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["n", None, 4]),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]),
        helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None),
    ]
    weight = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    graph = helper.make_graph([], "g", values, [], [weight])
    found = declared_inputs(helper.make_model(graph))
    assert found == (
        Declared("x", "bfloat16", ("n", None, 4)),
        Declared("list", "sequence_type", ()),
    )
    assert str(found[0]) == "x (nx?x4)"
    with pytest.raises(InputError, match="'list' holds sequence_type"):
        latency_inputs(found, None, np.random.default_rng(0))
    assert isinstance(graph, onnx.GraphProto)


@pytest.mark.parametrize(
    ("shapes", "declared", "wanted"),
    [
        ({"input_ids": (32, 128), "attention_mask": (32, 128)}, TEXT, 32),
        # The batch may be the second axis; its name says so.
        ({"x": (7, 4)}, (Declared("x", "float32", ("time", "batch")),), 4),
        ({"x": (7, 4), "y": (7,)}, (Declared("x", "float32", (None, 4)),), 7),
        ({"x": (7, 4), "y": (9,)}, (Declared("x", "float32", (None, 4)),), None),
        ({"x": ()}, (Declared("x", "float32", ()),), None),
    ],
)
def test_the_batch(shapes: Any, declared: tuple[Declared, ...], wanted: int | None) -> None:
    assert batch_size(shapes, declared) == wanted


def test_shapes_print_as_the_option_writes_them() -> None:
    assert shape_text({"ids": (1, 128), "scale": ()}) == "ids=1x128, scale=scalar"
