"""Small ONNX files for runtimes, and their check data, without an exporter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = helper.make_opsetid("", 18)
Shape = Sequence[int | str]


def port(name: str, shape: Shape, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
    **options: Any,
) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    onnx.save_model(helper.make_model(graph, opset_imports=[OPSET], ir_version=8), path, **options)
    return path


def product(path: Path, kind: int = TensorProto.FLOAT, **options: Any) -> Path:
    """y = x w with w all ones, rows free."""
    ends = port("x", ["n", 4], kind), port("y", ["n", 3], kind)
    ones = helper.make_tensor("w", kind, [4, 3], [1.0] * 12)
    if kind == TensorProto.FLOAT:
        ones = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return save(path, [node], ends[:1], ends[1:], [ones], **options)


def gate(path: Path) -> Path:
    """y = x HardSigmoid(z): the gate of a squeeze-and-excite block."""
    nodes = [
        helper.make_node("HardSigmoid", ["z"], ["g"], alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", ["x", "g"], ["y"]),
    ]
    return save(path, nodes, [port("x", ["n", 4]), port("z", ["n", 4])], [port("y", ["n", 4])])


def unknown(path: Path) -> Path:
    """An operator that nobody has."""
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    return save(path, [node], [port("x", ["n", 4])], [port("y", ["n", 4])])
