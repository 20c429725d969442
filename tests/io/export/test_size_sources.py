"""One source for each dynamic size: which reads of a size move, and which stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

from opdf_compile.io.export.size_sources import read_sizes_from_first_input

Shape = list[Any]


def build(
    reads: dict[str, tuple[str, dict[str, int]]],
    *,
    ids: Shape = ("B", "S"),
    mask: Shape = ("B", "S"),
    activation: Shape = ("B", "S"),
) -> ModelProto:
    """ids, mask and h = ids + mask; one Shape node per read, name -> (what is read, attributes)."""
    nodes = [helper.make_node("Add", ["ids", "mask"], ["h"])]
    nodes += [
        helper.make_node("Shape", [value], [name], name=name, **attributes)
        for name, (value, attributes) in reads.items()
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("ids", ids), ("mask", mask))
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in reads]
    inner = helper.make_tensor_value_info("h", TensorProto.FLOAT, activation)
    graph = helper.make_graph(nodes, "sizes", inputs, outputs, value_info=[inner])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def moved(proto: ModelProto) -> dict[str, tuple[str | None, int | None, int | None]]:
    """Read name -> (what it reads, start, end) after the pass."""
    model = ir.from_proto(proto)
    read_sizes_from_first_input(model)
    found = {}
    for node in model.graph:
        if node.op_type == "Shape":
            ends = [
                node.attributes[key].as_int() if key in node.attributes else None
                for key in ("start", "end")
            ]
            assert node.inputs[0] is not None
            found[str(node.name)] = (node.inputs[0].name, ends[0], ends[1])
    return found


@pytest.mark.parametrize("value", ["ids", "mask", "h"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_shared_size_is_read_from_the_first_input(value: str, axis: int) -> None:
    proto = build({"n": (value, {"start": axis, "end": axis + 1})})
    assert moved(proto) == {"n": ("ids", axis, axis + 1)}


def test_the_axis_follows_the_symbol() -> None:
    proto = build(
        {"b": ("mask", {"start": 1, "end": 2}), "s": ("h", {"start": 2, "end": 3})},
        mask=["S", "B"],
        activation=[4, "B", "S"],
    )
    assert moved(proto) == {"b": ("ids", 0, 1), "s": ("ids", 1, 2)}


def test_a_symbol_that_an_input_has_twice_is_read_from_its_first_axis() -> None:
    proto = build({"n": ("ids", {"start": 1, "end": 2})}, ids=["B", "B"])
    assert moved(proto) == {"n": ("ids", 0, 1)}


def test_a_missing_start_is_zero() -> None:
    assert moved(build({"n": ("mask", {"end": 1})})) == {"n": ("ids", 0, 1)}


def test_a_size_that_only_the_second_input_has_is_read_there() -> None:
    proto = build({"t": ("h", {"start": 1, "end": 2})}, mask=["B", "T"], activation=["B", "T"])
    assert moved(proto) == {"t": ("mask", 1, 2)}


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ({"start": 0, "end": 1}, ["other", "S"]),
        ({"start": 0, "end": 1}, [2, "S"]),
        ({"start": 0, "end": 1}, [None, "S"]),
        ({"start": 0}, ["B", "S"]),
        ({}, ["B", "S"]),
        ({"start": 0, "end": 2}, ["B", "S"]),
        ({"start": -1, "end": 0}, ["B", "S"]),
        ({"start": 2, "end": 3}, ["B", "S"]),
    ],
    ids=["unrelated", "static", "unnamed", "no end", "whole", "two axes", "negative", "beyond"],
)
def test_what_is_no_single_shared_size_stays(attributes: dict[str, int], shape: Shape) -> None:
    found = moved(build({"n": ("h", attributes)}, activation=shape))
    assert found == {"n": ("h", attributes.get("start"), attributes.get("end"))}


def test_unnamed_input_axes_are_not_taken_for_one_another() -> None:
    proto = build({"n": ("mask", {"start": 0, "end": 1})}, ids=[None, "S"], mask=[None, "S"])
    assert moved(proto) == {"n": ("mask", 0, 1)}


def test_shape_of_another_domain_stays() -> None:
    proto = build({"n": ("h", {"start": 0, "end": 1})})
    proto.graph.node[-1].domain = "custom"
    assert moved(proto) == {"n": ("h", 0, 1)}


def test_the_sizes_stay_what_they_were() -> None:
    reads = {
        "b": ("mask", {"start": 1, "end": 2}),
        "s": ("mask", {"start": 0, "end": 1}),
        "whole": ("mask", {}),
    }
    proto = build(reads, ids=["B", "S"], mask=["S", "B"], activation=[None, None])
    proto.graph.node[0].CopyFrom(helper.make_node("MatMul", ["ids", "mask"], ["h"]))
    model = ir.from_proto(proto)
    read_sizes_from_first_input(model)
    feed = {"ids": np.zeros((2, 5), np.float32), "mask": np.zeros((5, 2), np.float32)}
    results = []
    for version in (proto, ir.to_proto(model)):
        session = onnxruntime.InferenceSession(
            version.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        results.append([value.tolist() for value in session.run(list(reads), feed)])
    assert results[0] == results[1] == [[2], [5], [5, 2]]
