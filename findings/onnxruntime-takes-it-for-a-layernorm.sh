#!/usr/bin/env bash
# onnxruntime takes other normalisations for a layer norm and computes that instead, from the basic level
# on, which includes the default.
#
# It recognises a layer norm by its chain of operators (ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div,
# Mul, Add) and replaces it by one LayerNormalization. The chain does not say all: what is subtracted
# from what, the exponent and the shape of the epsilon are not looked at. So (mean - x) / deviation comes
# out with its sign turned around; a norm by the fourth moment is computed with the second; and of an
# epsilon per channel (a floor for the noise, or one that is learned) the first entry serves all. All
# three have the right shape and scale, nothing is said, and a plain layer norm is right. The same with
# the root of the mean square alone, at the extended level, for the epsilon; the exponent is looked at there.
# The passes are LayerNormFusionL1 and SimplifiedLayerNormFusion; without them all is right.
#
# Exits 0 while it behaves so, 1 once such chains are left alone.
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
PASSES = ["LayerNormFusionL1", "LayerNormFusionL2", "SimplifiedLayerNormFusion"]
WIDTH = 8
rng = np.random.default_rng(0)
X = rng.standard_normal((16, WIDTH)).astype(np.float32)
SCALE = rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)
BIAS = rng.uniform(-0.5, 0.5, WIDTH).astype(np.float32)
ONE, FLOOR = np.float32(1e-5), np.linspace(0.01, 2, WIDTH, dtype=np.float32)
# Centred or not, mean minus x or x minus mean, exponent, epsilon; and the levels that get it wrong.
CASES = {
    "a layer norm": (True, False, 2, ONE, ()),
    "mean minus x": (True, True, 2, ONE, ("basic", "default")),
    "the fourth moment": (True, False, 4, ONE, ("basic", "default")),
    "an epsilon per channel": (True, False, 2, FLOOR, ("basic", "default")),
    "root mean square": (False, False, 2, ONE, ()),
    "the same, fourth moment": (False, False, 4, ONE, ()),
    "the same, epsilon per channel": (False, False, 2, FLOOR, ("default",)),
}


def model(centred, turned, exponent, epsilon, opset):
    constants = {"exponent": np.float32(exponent), "epsilon": epsilon, "scale": SCALE, "bias": BIAS}
    mean = {"axes": [-1]}
    if opset >= 18:
        mean, constants["last"] = {}, np.array([-1])
    last = ["last"] if opset >= 18 else []
    nodes, away = [], "x"
    if centred:
        away = "away"
        nodes.append(helper.make_node("ReduceMean", ["x", *last], ["mean"], "mean", **mean))
        nodes.append(helper.make_node("Sub", ["mean", "x"] if turned else ["x", "mean"], ["away"], "sub"))
    nodes += [
        helper.make_node("Pow", [away, "exponent"], ["power"], "pow"),
        helper.make_node("ReduceMean", ["power", *last], ["moment"], "moment", **mean),
        helper.make_node("Add", ["moment", "epsilon"], ["floored"], "floor"),
        helper.make_node("Sqrt", ["floored"], ["deviation"], "sqrt"),
        helper.make_node("Div", [away, "deviation"], ["normal"], "div"),
        helper.make_node("Mul", ["normal", "scale"], ["scaled"], "mul"),
        helper.make_node("Add", ["scaled", "bias"], ["y"], "add"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in "xy"]
    made = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "norm", values[:1], values[1:], made)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(whole, full_check=True)
    return whole.SerializeToString()


def truth(centred, turned, exponent, epsilon):
    x = X.astype(np.float64)
    away = x - x.mean(-1, keepdims=True) if centred else x
    away = -away if turned else away
    deviation = np.sqrt((away**exponent).mean(-1, keepdims=True) + epsilon.astype(np.float64))
    return away / deviation * SCALE + BIAS


def run(made, level, **more):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"], **more)
    return session.run(None, {"x": X})[0]


good = True
for name, (*how, wrong) in CASES.items():
    wanted = truth(*how)
    for opset in (17, 18):
        made = model(*how, opset)
        found = {level: run(made, value) for level, value in LEVELS.items()}
        found["default without the passes"] = run(made, LEVELS["default"], disabled_optimizers=PASSES)
        off = {
            key: float(np.linalg.norm(value - wanted) / np.linalg.norm(wanted))
            for key, value in found.items()
        }
        good &= all(off[key] > 0.05 if key in wrong else off[key] < 1e-4 for key in off)
        print(f"{name}, opset {opset}: off by", *(f"{value:.1e} ({key})," for key, value in off.items()))
        if name == "mean minus x":
            centred = {key: (value - BIAS)[0, 0] for key, value in found.items()}
            print("    first output less its bias:", *(f"{v:+.4f} ({k})," for k, v in centred.items()))
            good &= bool(np.allclose(found["basic"] - BIAS, BIAS - found["not optimised"], atol=1e-4))
print("it behaves so" if good else "the behaviour has changed")
sys.exit(0 if good else 1)
PYTHON
