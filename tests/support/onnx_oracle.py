"""One-node ONNX models, and the two oracles that say what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from opdf_compile.io.onnx_student.onnx_loading import make_source
from opdf_compile.io.onnx_student.student import OnnxStudent

ort.set_default_logger_severity(3)


def one_node(
    op: str,
    inputs: Sequence[np.ndarray | None],
    attributes: Mapping[str, Any],
    *,
    opset: int,
    constants: Sequence[int] = (),
    outputs: int = 1,
) -> onnx.ModelProto:
    """A model of one node; the inputs at `constants` are initialisers."""
    names = ["" if value is None else f"x{i}" for i, value in enumerate(inputs)]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attributes)
    given = {f"x{i}": value for i, value in enumerate(inputs) if value is not None}
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(value.dtype),
                [f"{name}_{axis}" for axis in range(value.ndim)],
            )
            for name, value in given.items()
            if int(name[1:]) not in constants
        ],
        [helper.make_empty_tensor_value_info(f"y{i}") for i in range(outputs)],
        [numpy_helper.from_array(given[f"x{i}"], f"x{i}") for i in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def feeds(model: onnx.ModelProto, inputs: Sequence[np.ndarray | None]) -> dict[str, np.ndarray]:
    wanted = {info.name for info in model.graph.input}
    return {f"x{i}": v for i, v in enumerate(inputs) if f"x{i}" in wanted and v is not None}


def by_runtime(model: onnx.ModelProto, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(y) for y in session.run(None, dict(given))]


def by_reference(model: onnx.ModelProto, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(y) for y in ReferenceEvaluator(model).run(None, dict(given))]


def by_student(model: onnx.ModelProto, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    student = OnnxStudent(make_source(model, "model.onnx"))
    with torch.no_grad():
        found = student(**{name: torch.from_numpy(value) for name, value in given.items()})
    tensors = [found] if isinstance(found, torch.Tensor) else list(found.values())
    return [tensor.numpy() for tensor in tensors]


def require_equal(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> None:
    """Equal shapes and dtypes; integers equal, floats within a few roundings.

    A sum of n products in float32 has a relative error of about n eps in another order: 64 eps of
    the largest element covers the tensors here, whose sums have fewer than 64 terms.
    """
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        if theirs.dtype.kind != "f":
            np.testing.assert_array_equal(ours, theirs)
            continue
        finite = theirs[np.isfinite(theirs)]
        scale = float(np.abs(finite).max()) if finite.size else 0.0
        atol = 64 * float(np.finfo(theirs.dtype).eps) * scale
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, equal_nan=True)
