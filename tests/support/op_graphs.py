"""Small op graphs as torch functions and ONNX nodes, with the evidence that export would write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from opdf_compile.artefacts.check_file import CheckData, Sample, check_path, write_check
from opdf_compile.files.atomic import sha256
from opdf_compile.io.evidence.evaluating import _errors
from opdf_compile.parity.numerics.checking import check_numerics
from opdf_compile.parity.numerics.numerics_result import NumericsResult
from opdf_compile.parity.runtime.registry import resolve_device

CPU = resolve_device("cpu")
DTYPES = {"float32": torch.float32, "float16": torch.float16}
PROTO = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "bfloat16": TensorProto.BFLOAT16,
}
Arrays = dict[str, np.ndarray]
Tensors = Mapping[str, torch.Tensor]


def gemm(x: torch.Tensor, w: Tensors) -> torch.Tensor:
    hidden = torch.relu(functional.linear(x, w["a"], w["b"]))
    return functional.linear(torch.tanh(functional.linear(hidden, w["c"])), w["d"])


def conv(x: torch.Tensor, w: Tensors) -> torch.Tensor:
    return functional.conv2d(torch.relu(functional.conv2d(x, w["a"], w["b"], padding=1)), w["c"])


def norm(x: torch.Tensor, w: Tensors) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], w["a"], w["b"])


def soft(x: torch.Tensor, w: Tensors) -> torch.Tensor:
    return torch.softmax(x @ w["a"], -1)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


# Op graph: its function in torch, its nodes, the input's shape and those of the weights.
GRAPHS: dict[str, tuple[Any, list[onnx.NodeProto], tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "gemm": (
        gemm,
        [
            node("Gemm", "x a b", "h1", transB=1),
            node("Relu", "h1", "h2"),
            node("Gemm", "h2 c", "h3", transB=1),
            node("Tanh", "h3", "h4"),
            node("Gemm", "h4 d", "y", transB=1),
        ],
        (4, 24),
        {"a": (32, 24), "b": (32,), "c": (16, 32), "d": (8, 16)},
    ),
    "conv": (
        conv,
        [
            node("Conv", "x a b", "h1", pads=[1, 1, 1, 1]),
            node("Relu", "h1", "h2"),
            node("Conv", "h2 c", "y"),
        ],
        (2, 3, 9, 9),
        {"a": (8, 3, 3, 3), "b": (8,), "c": (4, 8, 3, 3)},
    ),
    "norm": (
        norm,
        [node("LayerNormalization", "x a b", "y", axis=-1, epsilon=1e-5)],
        (4, 48),
        {"a": (48,), "b": (48,)},
    ),
    "soft": (
        soft,
        [node("MatMul", "x a", "h"), node("Softmax", "h", "y", axis=-1)],
        (4, 24),
        {"a": (24, 10)},
    ),
}


def draw(rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Arrays:
    return {
        name: (rng.standard_normal(shape) / math.sqrt(max(math.prod(shape[1:]), 1))).astype(dtype)
        for name, shape in shapes.items()
    }


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[str, Sequence[Any]]],
    outputs: Mapping[str, tuple[str, Sequence[Any] | None]],
    weights: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a graph; values are given as name -> (dtype, shape)."""
    read, given = (
        [helper.make_tensor_value_info(name, PROTO[dtype], shape) for name, (dtype, shape) in side]
        for side in (inputs.items(), outputs.items())
    )
    constants = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "graph", read, given, constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    return path


def sample_of(inputs: Arrays, truth: Mapping[str, Any], computed: Mapping[str, Any]) -> Sample:
    """A sample with the errors that export would record."""
    errors = {
        name: _errors(torch.as_tensor(computed[name]), torch.as_tensor(truth[name]))
        for name in truth
    }
    finite = {
        n: np.abs(np.asarray(t, dtype=np.float64))[np.isfinite(np.asarray(t))]
        for n, t in truth.items()
    }
    return Sample(
        inputs,
        {name: np.asarray(value) for name, value in truth.items()},
        {name: pair[0] for name, pair in errors.items()},
        {name: pair[1] for name, pair in errors.items()},
        {name: float(value.max(initial=0.0)) for name, value in finite.items()},
    )


def evidence(
    path: Path, samples: Sequence[Sample], dtype: str = "float32", onnx_hash: str | None = None
) -> Path:
    data = CheckData(
        tuple(samples[0].inputs),
        tuple(samples[0].outputs),
        dtype,
        tuple(samples),
        sha256(path) if onnx_hash is None else onnx_hash,
    )
    write_check(check_path(path), data)
    return check_path(path)


def build(
    path: Path,
    kind: str,
    seed: int,
    dtype: str = "float32",
    *,
    scale: float = 1.0,
    wrong: float = 0.0,
    whole: bool = False,
    count: int = 3,
) -> Path:
    """An export of one op graph; `wrong` changes one weight of the ONNX file relatively.

    With `whole`, it changes all weights of the tensor; `count` is the number of samples.
    """
    function, nodes, shape, shapes = GRAPHS[kind]
    rng = np.random.default_rng(seed)
    weights = draw(rng, shapes, dtype)
    last = max(shapes, key=lambda name: (len(shapes[name]), name))
    weights[last] = (weights[last].astype(np.float64) * scale).astype(dtype)
    weights[last].flat[0] = scale / 4
    samples = []
    for _ in range(count):
        x = rng.standard_normal(shape).astype(dtype)
        low = {name: torch.from_numpy(value) for name, value in weights.items()}
        high = {name: value.double() for name, value in low.items()}
        truth = function(torch.from_numpy(x).double(), high)
        computed = function(torch.from_numpy(x), low)
        samples.append(sample_of({"x": x}, {"y": truth.numpy()}, {"y": computed}))
    if wrong:
        weights[last] = weights[last].copy()
        place = slice(None) if whole else slice(1)
        weights[last].flat[place] *= weights[last].dtype.type(1 + wrong)
    save(
        path, nodes, {"x": (dtype, ["batch", *shape[1:]])}, {"y": (dtype, truth.dim() * [None])},
        weights,
    )  # fmt: skip
    evidence(path, samples, dtype)
    return path


def judge(path: Path, **options: Any) -> NumericsResult:
    return check_numerics(path, check_path(path), CPU, **options)
