"""Quantised graphs: scales and zero points move with the weights, how they are held does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType
from quantised_pairs import TOOLS, Tool, dynamic, qdq, static, trained, untouched, write

from opdf_compile.artefacts import is_quantised, link, quantisation_constants, quantisation_of
from opdf_compile.parity import compare
from opdf_compile.parity.structure.compare import compare_structure


def pair(folder: Path) -> tuple[Path, Path]:
    return write(folder / "a.onnx", trained(untouched())), write(folder / "b.onnx", untouched())


@pytest.mark.parametrize("tool", TOOLS)
def test_other_numbers_are_the_same_structure(tmp_path: Path, tool: Tool) -> None:
    files = pair(tmp_path)
    for file in files:
        tool(file)
    found = compare_structure(*files)
    assert found.verdict == "pass", found.differences
    form = {"qdq": "QDQ", "qoperator": "QOperator", "dynamic": "dynamic"}[tool.__name__]
    assert any(f", {form})" in note for note in found.notes)


@pytest.mark.parametrize(
    "other",
    [
        {"per_channel": False},
        {"nodes_to_exclude": ["last"]},
        {"nodes_to_exclude": ["first"]},
        {"activation_type": QuantType.QUInt8},
        {"weight_type": QuantType.QUInt8, "activation_type": QuantType.QUInt8},
        {"quant_format": QuantFormat.QOperator, "activation_type": QuantType.QUInt8},
        {"extra_options": {"ActivationSymmetric": True, "QuantizeBias": False}},
    ],
)
def test_another_way_of_quantising_is_refuted(tmp_path: Path, other: dict[str, Any]) -> None:
    files = pair(tmp_path)
    static(files[0], **other)
    qdq(files[1])
    assert compare_structure(*files).verdict == "fail"


def test_a_float_file_beside_a_quantised_one_is_told(tmp_path: Path) -> None:
    files = pair(tmp_path)
    qdq(files[0])
    found = compare_structure(*files)
    assert found.verdict == "fail"
    assert any("only the candidate is quantised" in note for note in found.notes)


def test_dynamic_and_static_are_two_structures(tmp_path: Path) -> None:
    files = pair(tmp_path)
    dynamic(files[0])
    qdq(files[1])
    assert compare_structure(*files).verdict == "fail"


def constants(path: Path) -> dict[str, Any]:
    return {t.name: t for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("tool", TOOLS)
def test_every_number_that_quantisation_made_is_found(tmp_path: Path, tool: Tool) -> None:
    """The oracle is the tool's habit of naming them."""
    file = write(tmp_path / "a.onnx", untouched())
    assert not is_quantised(onnx.load(file)) and quantisation_of(link(onnx.load(file), "")) is None
    tool(file)
    model = onnx.load(file)
    found = {constant.name for constant in quantisation_constants(link(model, ""))}
    named = ("_scale", "_zero_point", "_quantized")
    wanted = {t.name for t in model.graph.initializer if t.name.endswith(named)}
    assert found == wanted and wanted and is_quantised(model)


def test_a_constant_outside_of_quantisation_is_still_compared(tmp_path: Path) -> None:
    files = pair(tmp_path)
    for number, file in enumerate(files):
        qdq(file)
        model = onnx.load(file)
        model.graph.initializer.append(numpy_helper.from_array(np.float32(number), "added"))
        model.graph.node.append(helper.make_node("Add", ["y", "added"], ["z"]))
        model.graph.output[0].name = "z"
        onnx.save(model, file)
    found = compare_structure(*files)
    assert found.verdict == "fail" and "other values" in str(found.differences[0])


def shared(path: Path) -> None:
    """Let the second reader of a zero bias read what the first one has unpacked."""
    model = onnx.load(path)
    nodes = {node.output[0]: node for node in model.graph.node}
    first, second = (nodes[name] for name in ("b0", "b1"))
    for node in model.graph.node:
        node.input[:] = ["b0" if name == "b1" else name for name in node.input]
    assert first.op_type == second.op_type == "DequantizeLinear"
    model.graph.node.remove(second)
    for name in second.input:
        (tensor,) = (t for t in model.graph.initializer if t.name == name)
        model.graph.initializer.remove(tensor)
    onnx.save(model, path)


def unpacking(path: Path, axis: int | None = None) -> Path:
    """Two stored vectors, each unpacked and added."""
    names = [f"{what}{i}" for i in range(2) for what in ("q", "s", "z")]
    kinds = {"q": np.zeros(4, np.int8), "s": np.ones(4, np.float32), "z": np.zeros(4, np.int8)}
    nodes = [
        helper.make_node(
            "DequantizeLinear",
            [f"q{i}", f"s{i}", f"z{i}"],
            [f"b{i}"],
            axis=axis if i and axis is not None else 0,
        )
        for i in range(2)
    ]
    nodes += [
        helper.make_node("Add", ["x", "b0"], ["h"]),
        helper.make_node("Mul", ["h", "b1"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 4]) for n in "xy"]
    weights = [numpy_helper.from_array(kinds[name[0]], name) for name in names]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize("side", [0, 1])
def test_equal_stored_weights_may_be_unpacked_once_for_all(tmp_path: Path, side: int) -> None:
    """An exporter merges equal constants, as the zero biases of the untouched student."""
    files = [unpacking(tmp_path / name) for name in ("a.onnx", "b.onnx")]
    shared(files[side])
    assert compare_structure(*files).verdict == "pass"


@pytest.mark.parametrize("side", [0, 1])
def test_a_shared_weight_does_not_hide_another_axis(tmp_path: Path, side: int) -> None:
    files = [unpacking(tmp_path / "a.onnx"), unpacking(tmp_path / "b.onnx")]
    shared(files[side])
    unpacking(files[1 - side], axis=-1)
    assert compare_structure(*files).verdict == "fail"


def test_the_comparer_alone_knows_quantised_graphs(tmp_path: Path) -> None:
    files = pair(tmp_path)
    for file in files:
        qdq(file)
    assert compare(*files).equal
