"""Arrays go into the runtime and come back with their values, also where numpy has no such type."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from opdf_compile.parity.runtime.ort.array_session import ArraySession
from opdf_compile.parity.runtime.ort.tensors import from_runtime, to_runtime
from opdf_compile.parity.runtime.registry import resolve_device

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Largest and smallest numbers, both zeros, what is no number, and a value that rounds.
SPECIAL = [0.0, -0.0, 3.3895e38, 1e-38, -2.5, np.inf, -np.inf, np.nan, 0.1]


@pytest.mark.parametrize("shape", [(9,), (3, 3), (1, 9, 1)])
def test_bfloat16_is_widened_to_its_own_values(shape: tuple[int, ...]) -> None:
    array = np.array(SPECIAL, np.float32).astype(ml_dtypes.bfloat16).reshape(shape)
    found = from_runtime(to_runtime(array))
    assert found.dtype == np.float32 and found.flags.writeable
    np.testing.assert_array_equal(found, array.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(found), np.signbit(array.astype(np.float32)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_shapes_stay(shape: tuple[int, ...], dtype: str) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(np.dtype(dtype))
    found = from_runtime(to_runtime(array))
    assert found.shape == shape
    np.testing.assert_array_equal(found, array.astype(found.dtype))


def test_an_array_that_is_not_contiguous() -> None:
    array = np.arange(12, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(3, 4).T
    np.testing.assert_array_equal(from_runtime(to_runtime(array)), array.astype(np.float32))


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_returns_bfloat16(device: str, tmp_path: Path) -> None:
    """Through a session, whose outputs a device may keep."""
    ports = [helper.make_tensor_value_info(n, TensorProto.BFLOAT16, ["n", 3]) for n in ("x", "y")]
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Neg", ["wide"], ["negative"]),
        helper.make_node("Cast", ["negative"], ["y"], to=TensorProto.BFLOAT16),
    ]
    graph = helper.make_graph(nodes, "negative", ports[:1], ports[1:])
    path = tmp_path / "half.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    x = np.array(SPECIAL, np.float32).astype(ml_dtypes.bfloat16).reshape(3, 3)
    found = ArraySession(path, resolve_device(device))({"x": x})["y"]
    np.testing.assert_array_equal(found, -x.astype(np.float32))
