#!/usr/bin/env bash
# OpenCV reads the gate x * HardSigmoid(z) as HardSwish(z), and forgets x.
#
# Squeeze-and-excitation blocks, as in MobileNetV3, multiply the features by HardSigmoid of what a small
# branch made of them. With the usual constants (1/6 and 1/2) that is a HardSigmoid and a Mul in ONNX.
# OpenCV's reader has a rule that joins these two to HardSwish, z * HardSigmoid(z), and does not ask
# whether the other factor is z. Both engines of version 5 have it, and in either order of the factors; no
# warning. With another slope, as Keras had (1/5), nothing is joined and all is right. A MobileNetV3 still
# looks like a classifier: its outputs are of the usual size, and have nothing to do with the picture.
#
# Exits 0 while it behaves so, 1 once the gates are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile onnx==1.23.2 opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

print(f"opencv {cv2.__version__}, onnx {onnx.__version__}")
ENGINES = {"new": cv2.dnn.ENGINE_NEW, "classic": cv2.dnn.ENGINE_CLASSIC}
X = np.arange(-4.0, 4.0, dtype=np.float32).reshape(1, 2, 2, 2) / 2


def model(slope, factors):
    """y = x * HardSigmoid(z), where z is a convolution of x."""
    weight = np.array([[[[2.0]], [[0.0]]], [[[0.0]], [[-1.0]]]], np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["z"], "branch"),
        helper.make_node("HardSigmoid", ["z"], ["gate"], "sigmoid", alpha=slope, beta=0.5),
        helper.make_node("Mul", factors, ["y"], "scale"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, X.shape) for name in "xy")
    graph = helper.make_graph(nodes, "gated", [x], [y], [numpy_helper.from_array(weight, "weight")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def hardswish(slope):
    z = X * np.array([2.0, -1.0], np.float32).reshape(1, 2, 1, 1)
    return z * np.clip(slope * z + 0.5, 0, 1)


wrong, swished = [], []
for slope in (1 / 6, 1 / 5):
    for factors in (["x", "gate"], ["gate", "x"]):
        made = model(slope, factors)
        (wanted,) = ReferenceEvaluator(made).run(None, {"x": X})
        for name, engine in ENGINES.items():
            data = np.frombuffer(made.SerializeToString(), np.uint8)
            net = cv2.dnn.readNetFromONNX(data, engine=engine)
            net.setInput(X, "x")
            got = net.forward()
            off = np.abs(got - wanted).max() / np.abs(wanted).max()
            is_swish = bool(np.allclose(got, hardswish(slope), atol=1e-6))
            case = f"slope {slope:.3f}, {' * '.join(factors)}, {name} engine"
            print(f"{case}: {off:.0%} off" + (", and equal to HardSwish(z)" if is_swish else ""))
            if off > 0.01:
                wrong.append(slope)
            if is_swish:
                swished.append(slope)
print(f"{len(wrong)} of 8 are another function")
sys.exit(not (wrong == swished == [1 / 6] * 4))
PYTHON
