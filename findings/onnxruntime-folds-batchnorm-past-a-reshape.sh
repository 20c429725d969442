#!/usr/bin/env bash
# onnxruntime folds a BatchNormalization into the MatMul before it through a Reshape or Transpose between
# them has moved the channels, from the basic level on, which includes the default.
#
# Folding is right if the channels that the norm counts are the columns of the weight. The runtime looks
# for MatMul, then any Reshape and Transpose, then BatchNormalization, and asks only that the counts agree.
# A projection to as many features as there are steps, normalised per step (Linear without bias,
# reshape to (batch, 8, 8), BatchNorm1d(8)), has the counts of both: the norm of step i is then applied to
# feature i. The same with a square batch that is transposed. Shapes are right, no message comes, and with
# 7 steps instead of 8 all is right, which is why a smaller trial shows nothing. The pass is
# MatMul_BatchNormalization_Fusion; without it all is right.
#
# Exits 0 while it behaves so, 1 once such a norm is left alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}")
LEVELS = {
    "not optimised": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "default": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
WIDTH, EPSILON = 8, 1e-5
rng = np.random.default_rng(0)
WEIGHT = (rng.standard_normal((16, WIDTH)) / 4).astype(np.float32)


def statistics(channels):
    """Scale, bias, mean and variance of a norm, as they may be after training."""
    drawn = rng.uniform(0.3, 2, channels), rng.normal(0, 0.5, (2, channels)), rng.uniform(0.2, 3, channels)
    scale, (bias, mean), variance = drawn
    return {"scale": scale, "bias": bias, "mean": mean, "variance": variance}


# What is done between the MatMul and the norm: target shape, permutation; rows of the input; channels.
CASES = {
    "nothing between": (None, None, 40, WIDTH),
    "reshape to (batch, 7, 8)": ([-1, 7, WIDTH], None, 35, 7),
    "reshape to (batch, 8, 8)": ([-1, WIDTH, WIDTH], None, 40, WIDTH),
    "the same, then features first": ([-1, WIDTH, WIDTH], [0, 2, 1], 40, WIDTH),
    "a batch of 7, transposed": (None, [1, 0], 7, 7),
    "a batch of 8, transposed": (None, [1, 0], 8, WIDTH),
}
WRONG = {"reshape to (batch, 8, 8)", "a batch of 8, transposed"}


def build(shape, permutation, rows, channels):
    constants = {"weight": WEIGHT}
    numbers = statistics(channels)
    constants.update({key: value.astype(np.float32) for key, value in numbers.items()})
    nodes, last, rank = [helper.make_node("MatMul", ["x", "weight"], ["product"], "matmul")], "product", 2
    if shape:
        constants["shape"], rank = np.array(shape), len(shape)
        nodes.append(helper.make_node("Reshape", [last, "shape"], ["shaped"], "reshape"))
        last = "shaped"
    if permutation:
        nodes.append(helper.make_node("Transpose", [last], ["turned"], "transpose", perm=permutation))
        last = "turned"
    inputs = [last, "scale", "bias", "mean", "variance"]
    nodes.append(helper.make_node("BatchNormalization", inputs, ["y"], "norm", epsilon=EPSILON))
    graph = helper.make_graph(
        nodes,
        "projection",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows if not shape else "rows", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString(), numbers


def truth(x, shape, permutation, numbers):
    y = x.astype(np.float64) @ WEIGHT.astype(np.float64)
    y = y.reshape(shape) if shape else y
    y = y.transpose(permutation) if permutation else y
    scale, bias, mean, variance = (
        value.reshape(-1, *[1] * (y.ndim - 2)) for value in numbers.values()
    )
    return (y - mean) / np.sqrt(variance + EPSILON) * scale + bias


def run(made, x, level, **more):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"], **more)
    return session.run(None, {"x": x})[0]


good = True
for name, (shape, permutation, rows, channels) in CASES.items():
    made, numbers = build(shape, permutation, rows, channels)
    x = rng.standard_normal((rows, 16)).astype(np.float32)
    wanted = truth(x, shape, permutation, numbers)
    found = {level: run(made, x, value) for level, value in LEVELS.items()}
    found["default without the pass"] = run(
        made, x, LEVELS["default"], disabled_optimizers=["MatMul_BatchNormalization_Fusion"]
    )
    off = {
        key: float(np.linalg.norm(value - wanted) / np.linalg.norm(wanted))
        for key, value in found.items()
    }
    wrong = {"basic", "default"} if name in WRONG else set()
    good &= all(off[key] > 0.1 if key in wrong else off[key] < 1e-4 for key in off)
    print(f"{name}: off by", *(f"{value:.1e} ({key})," for key, value in off.items()))
print("it behaves so" if good else "the behaviour has changed")
sys.exit(0 if good else 1)
PYTHON
