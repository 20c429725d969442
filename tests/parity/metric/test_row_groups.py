"""Which rows a metric gets at once, and which outputs: each row with what belongs to it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from opdf_compile.artefacts import CheckData, RowBatch, Sample
from opdf_compile.parity.metric.row_groups import grouped
from opdf_compile.parity.metric.rows import UserRows


def ones(rows: int) -> np.ndarray:
    return np.ones((rows, 2), np.float32)


def batch(rows: int, label: Any = None, **inputs: Any) -> RowBatch:
    return RowBatch({"x": ones(rows), **inputs}, {} if label is None else {"label": label}, rows)


def groups_of(*batches: RowBatch) -> list[Any]:
    sides = {"candidate": [{"y": ones(b.rows)} for b in batches]}
    return grouped(UserRows(batches, None), sides)


def test_a_number_without_axes_stays_with_its_rows() -> None:
    """An input and a label alike; rows of the same number are one call."""
    scale = [np.float32(1), np.float32(100), np.float32(1)]
    found = groups_of(*(batch(n + 1, scale=s) for n, s in enumerate(scale)))
    assert [(float(g.samples["scale"]), g.rows) for g in found] == [(1.0, 4), (100.0, 2)]
    labels = [np.array("cat"), np.array("dog")]
    found = groups_of(*(batch(2, label=label) for label in labels))
    assert [str(g.samples["label"]) for g in found] == ["cat", "dog"]


def test_a_number_for_all_rows_and_one_for_each_are_two_calls() -> None:
    found = groups_of(batch(2, label=np.array(3)), batch(2, label=np.array([3, 4])))
    assert [np.shape(g.samples["label"]) for g in found] == [(), (2,)]


def test_numbers_do_not_become_texts() -> None:
    found = groups_of(batch(2, label=np.array([3, 4])), batch(2, label=np.array(["a", "b"])))
    assert [g.samples["label"].dtype.kind for g in found] == ["i", "U"]
    (whole,) = groups_of(batch(1, label=np.array(["a"])), batch(1, label=np.array(["long"])))
    assert whole.samples["label"].tolist() == ["a", "long"]


def known(rows: int, start: int, **computed: np.ndarray) -> Sample:
    """A sample of check data: the rows start, start + 1, ... and outputs."""
    x = np.arange(start, start + rows, dtype=np.float32)[:, None]
    none = dict.fromkeys(computed, 0.0)
    return Sample({"x": x}, computed, none, none, none, computed={"y": 2 * x, **computed})


@pytest.mark.parametrize("order", ["as they are", "reversed"])
def test_an_output_without_rows_is_no_rows(order: str) -> None:
    """Four anchors look like the four rows of one sample, and the other sample has six."""
    anchors = np.arange(4.0)
    samples = (known(4, 0, anchors=anchors), known(6, 4, anchors=anchors))
    check = CheckData(("x",), ("y", "anchors"), "float32", samples)
    x = np.arange(10, dtype=np.float32)[:, None]
    x = x if order == "as they are" else x[::-1]
    (found,) = UserRows((RowBatch({"x": x}, rows=10),), check).torch_outputs or [{}]
    assert list(found) == ["y"] and np.array_equal(found["y"], 2 * x)


def test_rows_of_several_lengths_are_no_rows_at_once() -> None:
    samples = (known(2, 0, found=np.ones((2, 3))), known(2, 2, found=np.ones((2, 5))))
    check = CheckData(("x",), ("y", "found"), "float32", samples)
    x = np.arange(4, dtype=np.float32)[:, None]
    batches = (RowBatch({"x": x}, rows=4), RowBatch({"x": x[:2]}, rows=2))
    found = UserRows(batches, check).torch_outputs or []
    assert [sorted(outputs) for outputs in found] == [["y"], ["found", "y"]]


def test_bfloat16_comes_as_runtimes_give_it() -> None:
    y = np.array([[1.5], [2.5]], ml_dtypes.bfloat16)
    check = CheckData(("x",), ("y",), "bfloat16", (known(2, 0, y=y),))
    x = np.arange(2, dtype=np.float32)[:, None]
    (found,) = UserRows((RowBatch({"x": x}, rows=2),), check).torch_outputs or [{}]
    assert found["y"].dtype == np.float32 and found["y"].ravel().tolist() == [1.5, 2.5]
