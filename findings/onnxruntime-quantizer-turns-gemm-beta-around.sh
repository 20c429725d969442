#!/usr/bin/env bash
# onnxruntime's quantize_static loses the beta of a Gemm: its files add beta times too much or too little bias.
#
# Gemm is alpha * A @ B + beta * C, and torch.addmm(bias, x, w, beta=...) is exported to it. The quantizer
# takes beta into the scale of the int32 bias and then sets the attribute to 1. Dividing by the larger
# scale and multiplying by it again gives the plain bias, so a QDQ file works with beta 1. An integer kernel
# does not read that scale, it takes the one of input times weight, and so works with 1 / beta: what the
# QOperator file does always, and the very same QDQ file once the runtime optimises it, as it does unless
# told otherwise. With beta 0.5 the bias is counted four times over. No message anywhere, and the gap looks like a
# layer that does not like 8 bits. A beta of 1 is right everywhere.
#
# Exits 0 while it behaves so, 1 once the quantized files keep beta.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6 sympy==1.14.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import logging
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

logging.disable(logging.WARNING)
print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}")
rng = np.random.default_rng(0)
WEIGHT = (rng.standard_normal((32, 8)) / 6).astype(np.float32)
BIAS = np.linspace(0.1, 0.5, 8, dtype=np.float32)
BATCHES = [rng.standard_normal((64, 32)).astype(np.float32) for _ in range(8)]
LEVELS = {
    "not optimised": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "optimised": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class Batches(CalibrationDataReader):
    def __init__(self):
        self.left = iter(BATCHES)

    def get_next(self):
        batch = next(self.left, None)
        return None if batch is None else {"x": batch}


def write(beta):
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm", beta=beta)
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 32]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 8]),
    ]
    constants = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(BIAS, "b")]
    graph = helper.make_graph([node], "layer", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "plain.onnx")


def beta_of(path, level):
    """The beta by which the file adds the bias, read off its outputs by least squares."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": BATCHES[0]})
    added = (found - BATCHES[0].astype(np.float64) @ WEIGHT.astype(np.float64)).mean(0)
    return float(added @ BIAS / (BIAS @ BIAS))


good = True
for beta in (1.0, 0.5, 2.0):
    write(beta)
    for kind in (None, QuantFormat.QDQ, QuantFormat.QOperator):
        if kind:
            quantize_static(
                "plain.onnx", "small.onnx", Batches(), quant_format=kind, reduce_range=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )
        for name, level in LEVELS.items():
            plain_dq = kind is QuantFormat.QDQ and name == "not optimised"
            expected = beta if kind is None else 1.0 if plain_dq else 1 / beta
            found = beta_of("small.onnx" if kind else "plain.onnx", level)
            good &= abs(found - expected) < 0.1
            print(f"beta {beta}: {kind.name if kind else 'float':<9} {name:<13} works with {found:.2f}")
print("it behaves so" if good else "the behaviour has changed")
sys.exit(0 if good else 1)
PYTHON
