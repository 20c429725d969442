#!/usr/bin/env bash
# Reading a sequence backwards by its indices gives an empty tensor in onnxruntime, at its default level.
#
# x[:, torch.arange(n - 1, -1, -1)] of a free length is Range -> Gather in ONNX, and so is "the last k
# steps" by the indices -k ... -1, or a window that wraps around from the end to the start. From
# ORT_ENABLE_EXTENDED on, which includes the default, the runtime replaces the two by a Slice with the
# same start, end and step. But an end of -1 is an index of its own to a Slice, the last one, and an end
# of 0 behind a negative start comes before it: the slice is empty. No error, no warning; the sum over
# the steps is then 0 for every input, a model behind it answers from its biases, a mean is NaN. Ranges
# that run forwards from 0 are right, and so are constant ranges, which are folded before; a file tried
# out with fixed axes therefore shows nothing, and goes wrong once exported with a free one. The pass is
# GatherToSliceFusion; without it all is right.
#
# Exits 0 while it behaves so, 1 once both give the same rows.
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
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "default": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# Start, limit and step of the indices, for n steps; n is read from the input where the axis is free.
RANGES = {
    "all, forwards": (lambda n: 0, lambda n: n, 1),
    "all, backwards": (lambda n: n - 1, lambda n: -1, -1),
    "the last 2": (lambda n: -2, lambda n: 0, 1),
    "from the end around to the start": (lambda n: -1, lambda n: 2, 1),
}
X = np.arange(1.0, 13.0, dtype=np.float32).reshape(2, 6)


def model(name, free):
    """The steps of x (batch, n) at the indices of the range; with a fixed n the range is a constant."""
    start, limit, step = RANGES[name]
    nodes, constants = [], {"step": np.int64(step)}
    ends = {"start": start, "limit": limit}
    if free:
        nodes.append(helper.make_node("Shape", ["x"], ["sizes"], "shape", start=1, end=2))
        nodes.append(helper.make_node("Squeeze", ["sizes"], ["n"], "squeeze"))
        for which, end in ends.items():
            slope, constants[f"{which}_plus"] = end(1) - end(0), np.int64(end(0))
            constants[f"{which}_slope"] = np.int64(slope)
            nodes.append(helper.make_node("Mul", ["n", f"{which}_slope"], [f"{which}_n"], f"{which}_mul"))
            nodes.append(helper.make_node("Add", [f"{which}_n", f"{which}_plus"], [which], f"{which}_add"))
    else:
        constants.update({which: np.int64(end(X.shape[1])) for which, end in ends.items()})
    nodes.append(helper.make_node("Range", ["start", "limit", "step"], ["index"], "range"))
    nodes.append(helper.make_node("Gather", ["x", "index"], ["y"], "gather", axis=1))
    graph = helper.make_graph(
        nodes,
        "steps",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, "n" if free else X.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, None])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def run(made, level, **more):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"], **more)
    return session.run(None, {"x": X})[0]


good = True
for name, (start, limit, step) in RANGES.items():
    n = X.shape[1]
    truth = X[:, np.arange(start(n), limit(n), step)]
    for free in (True, False):
        made = model(name, free)
        found = {level: run(made, value) for level, value in LEVELS.items()}
        found["default without the pass"] = run(
            made, LEVELS["default"], disabled_optimizers=["GatherToSliceFusion"]
        )
        right = {key: np.array_equal(value, truth) for key, value in found.items()}
        lost = free and name != "all, forwards"
        good &= right == {key: not (lost and key in ("extended", "default")) for key in found}
        good &= found["default"].size == 0 if lost else True
        print(f"{name}, {'free' if free else 'fixed'} axis: numpy has {truth[0].tolist()} in the first row")
        for key, value in found.items():
            print(f"    {key:<24} {value.shape} {value[0].tolist()}, sum {float(value.sum())}")
print("it behaves so" if good else "the behaviour has changed")
sys.exit(0 if good else 1)
PYTHON
