#!/usr/bin/env bash
# An attention mask written as `scores + (1 - mask) * -1e9`, in a float16 model, is right in PyTorch
# and NaN for every visible position in the file that torch.onnx.export writes.
#
# PyTorch multiplies a float16 tensor by a Python number in float32 and rounds the product, so
# 0 * -1e9 is 0. The exporter stores the number as a float16 constant, which is minus infinity, and
# 0 * -inf is NaN by IEEE 754. Nothing warns: not the export, not the checker, not the runtime.
# `masked_fill(mask, -1e9)` on the same tensor is refused by PyTorch with an error, which hides that
# the other spelling is a problem, too.
#
# Exits 0 while it behaves so, 1 once the exported file agrees with PyTorch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet \
  torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.31.1 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import torch

warnings.filterwarnings("ignore")
print(f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}")


class Mask(torch.nn.Module):
    def forward(self, scores, mask):
        return (scores + (1 - mask) * -1e9).softmax(-1)


scores = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float16)
mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]], dtype=torch.float16)
eager = Mask()(scores, mask)
torch.onnx.export(Mask(), (scores, mask), "mask.onnx", dynamo=True, verbose=False)
model = onnx.load("mask.onnx")
onnx.checker.check_model(model, full_check=True)
session = onnxruntime.InferenceSession("mask.onnx", providers=["CPUExecutionProvider"])
names = [value.name for value in session.get_inputs()]
(found,) = session.run(None, dict(zip(names, (scores.numpy(), mask.numpy()))))
print("PyTorch, float16:  ", eager.tolist())
print("the exported file: ", found.tolist())

try:
    scores.masked_fill(mask == 0, -1e9)
    refused = False
except RuntimeError as error:
    refused = True
    print("masked_fill(-1e9): ", error)

still = bool(torch.isfinite(eager).all()) and bool(np.isnan(found).any()) and refused
print("it behaves so" if still else "the behaviour has changed")
sys.exit(0 if still else 1)
PYTHON
