#!/usr/bin/env bash
# scaled_dot_product_attention with a boolean mask: the file that torch.onnx.export writes at its default
# opset turns a NaN of the model into plain numbers, and gives rows that may look at nothing another
# value than PyTorch does.
#
# A query without any key has zeros as its output in PyTorch, since a softmax over nothing would be
# NaN. For a boolean mask (not for one of numbers) the exporter's translation puts an IsNaN behind the
# softmax and replaces what it finds by 0. So every NaN that the scores have for another reason (an
# overflow, a damaged weight) is replaced too: the output of such a query is 0, and the next layers
# see a number. A monitor that looks for NaN in production stays silent. And because the boolean mask
# is written as a large finite negative number, the IsNaN meets none in the rows without a key: the
# softmax there is uniform, and the file returns the mean of all values, those of hidden positions
# included, where PyTorch returns zeros. What it is there for it does not do, and what it does nobody
# asked for.
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
import collections
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F

warnings.filterwarnings("ignore")
print(f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}")


class Attention(torch.nn.Module):
    def forward(self, query, key, value, mask):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def exported(name, *inputs):
    torch.onnx.export(Attention(), inputs, name, dynamo=True, verbose=False)
    model = onnx.load(name)
    onnx.checker.check_model(model, full_check=True)
    count = collections.Counter(node.op_type for node in model.graph.node)
    opset = {entry.domain: entry.version for entry in model.opset_import}[""]
    print(f"opset {opset}, nodes: {dict(count)}")
    session = onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda *values: session.run(
        None, dict(zip(names, (value.numpy() for value in values)))
    )[0]


torch.manual_seed(0)
query, key, value = torch.randn(3, 1, 1, 4, 8)
boolean = torch.ones(4, 4, dtype=torch.bool)

run = exported("boolean.onnx", query, key, value, boolean)
damaged = query.clone()
damaged[0, 0, 2, 0] = float("nan")
eager, found = Attention()(damaged, key, value, boolean), run(damaged, key, value, boolean)
print("query 2 has a NaN, PyTorch: ", eager[0, 0, 2, :3].tolist())
print("the exported file:          ", found[0, 0, 2, :3].tolist())
hidden = bool(torch.isnan(eager[0, 0, 2]).all()) and bool((found[0, 0, 2] == 0).all())

blind = boolean.clone()
blind[2] = False
eager, found = Attention()(query, key, value, blind), run(query, key, value, blind)
print("query 2 sees no key, PyTorch:", eager[0, 0, 2, :3].tolist())
print("the exported file:           ", found[0, 0, 2, :3].tolist())
print("the mean of all values:      ", value[0, 0].mean(0)[:3].tolist())
mean = bool((eager[0, 0, 2] == 0).all()) and np.allclose(found[0, 0, 2], value[0, 0].mean(0))

still = hidden and mean
print("it behaves so" if still else "the behaviour has changed")
sys.exit(0 if still else 1)
PYTHON
