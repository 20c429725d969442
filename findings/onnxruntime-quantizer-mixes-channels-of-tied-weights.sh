#!/usr/bin/env bash
# onnxruntime's quantize_static with per_channel=True reads a weight that two layers share in opposite
# directions by the scales of the wrong channels, without a word, if the weight is square.
#
# Tied weights are ordinary: the decoder of an autoencoder reads the encoder's weight transposed, a
# ConvTranspose that of a Conv. The shared tensor can have one set of scales, along the output channels
# of one of its readers; for the other they lie along the inputs. A QDQ file says so by the axis of the
# DequantizeLinear and is right as long as nobody optimises it. The runtime does by default, and puts
# the scales into kernels that know output channels only. The QOperator file of the two Gemms is wrong at
# every level. If the matrix is not square, the QOperator file fails to run for the count of scales,
# which is how one would learn of it; square ones pass. One scale per tensor is right everywhere.
#
# Exits 0 while it behaves so, 1 once such a file is right or refused.
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
WIDTH = 8
LEVELS = {
    "not optimised": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "optimised": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
LAYERS = {"Gemm": ("Gemm", {"transB": 1}, "Gemm", []), "Conv": ("Conv", {}, "ConvTranspose", [3, 3])}


class Batches(CalibrationDataReader):
    def __init__(self, batches):
        self.left = iter(batches)

    def get_next(self):
        batch = next(self.left, None)
        return None if batch is None else {"x": batch}


def write(kind, rng):
    """An encoder and a decoder on one weight, whose channels differ in size; returns inputs for it."""
    encoder, options, decoder, kernel = LAYERS[kind]
    sizes = np.geomspace(0.05, 1, WIDTH).reshape(WIDTH, *[1] * (1 + len(kernel)))
    weight = rng.standard_normal((WIDTH, WIDTH, *kernel)) * sizes / np.sqrt(WIDTH * np.prod(kernel))
    shape = [16, WIDTH, *(2 * side for side in kernel)]
    nodes = [
        helper.make_node(encoder, ["x", "w"], ["code"], "encoder", **options),
        helper.make_node("Relu", ["code"], ["positive"], "relu"),
        helper.make_node(decoder, ["positive", "w"], ["y"], "decoder"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    constants = [numpy_helper.from_array(weight.astype(np.float32), "w")]
    graph = helper.make_graph(nodes, "autoencoder", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "plain.onnx")
    return [rng.standard_normal(shape).astype(np.float32) for _ in range(8)]


def run(path, level, batch):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": batch})[0].astype(np.float64)


wrong, right = {}, []
for kind in LAYERS:
    batches = write(kind, np.random.default_rng(0))
    truth = run("plain.onnx", LEVELS["not optimised"], batches[0])
    for form in QuantFormat:
        for per_channel in (False, True):
            quantize_static(
                "plain.onnx", "small.onnx", Batches(batches), quant_format=form,
                per_channel=per_channel, reduce_range=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )
            for name, level in LEVELS.items():
                off = run("small.onnx", level, batches[0]) - truth
                off = float(np.linalg.norm(off) / np.linalg.norm(truth))
                scales = "per channel" if per_channel else "per tensor"
                print(f"{kind} {form.name:<9} {scales:<11} {name:<13} off by {off:.1%}")
                if off > 0.1:
                    wrong[kind, form.name, scales, name] = off
                else:
                    right.append(off)
expected = {
    ("Gemm", "QDQ", "per channel", "optimised"),
    ("Gemm", "QOperator", "per channel", "not optimised"),
    ("Gemm", "QOperator", "per channel", "optimised"),
    ("Conv", "QDQ", "per channel", "optimised"),
}
good = set(wrong) == expected and max(right) < 0.05
print("it behaves so" if good else "the behaviour has changed")
sys.exit(0 if good else 1)
PYTHON
