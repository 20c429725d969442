"""Small students of two layers as ONNX files with check data, made and quantised without torch.

The truth is numpy's, in float64. Files are quantised by onnxruntime's own tools, as a user would.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from opdf_compile.artefacts import CheckData, Sample, check_path, write_check
from opdf_compile.files import sha256

IN, HIDDEN, OUT, ROWS = 16, 32, 6, 64
Weights = dict[str, np.ndarray[Any, Any]]
Tool = Callable[[Path], None]


def inputs(seed: int = 0, rows: int = ROWS) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((rows, IN)).astype(np.float32)


def untouched(seed: int = 0) -> Weights:
    draw = np.random.default_rng(seed).standard_normal
    return {
        "first.weight": (draw((IN, HIDDEN)) / 4).astype(np.float32),
        "first.bias": (draw(HIDDEN) / 4).astype(np.float32),
        "last.weight": (draw((HIDDEN, OUT)) / 4).astype(np.float32),
        "last.bias": np.zeros(OUT, np.float32),
    }


def trained(weights: Weights, seed: int = 1) -> Weights:
    """Every weight moved by a third of its size."""
    draw = np.random.default_rng(seed).standard_normal
    moved = {n: w + draw(w.shape) * (w.std() / 3 + 0.01) for n, w in weights.items()}
    return {name: array.astype(np.float32) for name, array in moved.items()}


def widened(weights: Weights, factor: float) -> Weights:
    """The same function: one unit's input larger and what is read of it as much smaller.

    In int8 the steps of the hidden layer become as much wider: the other units are rounded away.
    """
    made = {name: array.copy() for name, array in weights.items()}
    made["first.weight"][:, 0] *= factor
    made["first.bias"][0] *= factor
    made["last.weight"][0] /= factor
    return made


def truth(weights: Weights, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    hidden = np.maximum(x.astype(np.float64) @ w["first.weight"] + w["first.bias"], 0.0)
    found: np.ndarray[Any, Any] = hidden @ w["last.weight"] + w["last.bias"]
    return found


def write(path: Path, weights: Weights) -> Path:
    """A file in float32 and its check data."""
    nodes = [
        helper.make_node("Gemm", ["x", "first.weight", "first.bias"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["h"], "relu"),
        helper.make_node("Gemm", ["h", "last.weight", "last.bias"], ["y"], "last"),
    ]
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", IN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", OUT])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    samples = tuple(_sample(weights, x) for x in np.split(inputs(), 4))
    data = CheckData(("x",), ("y",), "float32", samples, sha256(path), {"y": "float32"})
    write_check(check_path(path), data)
    return path


def _sample(weights: Weights, x: np.ndarray[Any, Any]) -> Sample:
    y = truth(weights, x)
    off = np.abs(y.astype(np.float32).astype(np.float64) - y)
    return Sample(
        {"x": x},
        {"y": y},
        {"y": float(off.max())},
        {"y": float(np.sqrt(np.mean(off**2)))},
        {"y": float(np.abs(y).max())},
    )


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The rows of the check data."""

    def __init__(self) -> None:
        self._left = iter(np.split(inputs(), 4))

    def get_next(self) -> dict[str, Any] | None:
        found = next(self._left, None)
        return None if found is None else {"x": found}


def static(path: Path, **options: Any) -> None:
    """Quantise a file in its place; QDQ by output channel unless told otherwise."""
    chosen = {
        "quant_format": QuantFormat.QDQ,
        "per_channel": True,
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
    }
    made = path.with_suffix(".made")
    quantize_static(path, made, Reader(), **{**chosen, **options})
    made.replace(path)


def qdq(path: Path) -> None:
    static(path)


def qoperator(path: Path) -> None:
    static(path, quant_format=QuantFormat.QOperator, activation_type=QuantType.QUInt8)


def dynamic(path: Path) -> None:
    made = path.with_suffix(".made")
    quantize_dynamic(path, made, weight_type=QuantType.QUInt8)
    made.replace(path)


TOOLS: tuple[Tool, ...] = (qdq, qoperator, dynamic)
