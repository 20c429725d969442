#!/usr/bin/env bash
# A file that ExecuTorch makes of a convolution takes 15 rows at most, whatever batch was asked for.
#
# torch.export is told that the batch may be 1 to 64, and says so of its program; so does the program
# that ExecuTorch lowered, on the last look that a user has at it. The .pte itself holds tensors of 15
# rows, and 16 rows are refused at run time, on the device, with a number for an error. Cause: the size
# is settled by another run of the graph with symbolic sizes. torch's convolution asks there which kernel
# it would take on this computer, and one of the conditions (for oneDNN) is a batch of 16 or more. The
# example has fewer, so the symbol's upper end becomes 15. A convolution with a stride, whose condition
# is met before the batch is asked for, keeps 64, a Linear does, and so does the same model exported with
# an example of 20 rows: it then takes 1 to 64. So: export with 16 rows or more.
#
# Exits 0 while it behaves so, 1 once all files take 64 rows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 executorch==1.5.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - 2>errors.txt <<'PYTHON' || { tail -n 20 errors.txt >&2; exit 1; }
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn

print(f"executorch {version('executorch')}, torch {torch.__version__}")
MOST = 64


def rows_taken(model, shape, example_rows):
    """What the lowered program says of the batch, and which batches its file runs."""
    example = torch.zeros(example_rows, *shape)
    batch = torch.export.Dim("batch", min=1, max=MOST)
    program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: batch},))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    (said,) = lowered.exported_program().range_constraints.values()
    Path("model.pte").write_bytes(lowered.to_executorch().buffer)
    taken = []
    for rows in (1, 8, 15, 16, 20, MOST):
        forward = Runtime.get().load_program("model.pte").load_method("forward")
        try:
            forward.execute([torch.zeros(rows, *shape)])
        except RuntimeError:
            continue
        taken.append(rows)
    return said, taken


CASES = {
    "Conv2d, example of 2 rows": (nn.Conv2d(3, 8, 3, padding=1), (3, 8, 8), 2),
    "Conv2d of kernel 1, example of 2 rows": (nn.Conv2d(3, 8, 1), (3, 8, 8), 2),
    "Conv1d, example of 2 rows": (nn.Conv1d(3, 8, 3), (3, 8), 2),
    "Conv2d of stride 2, example of 2 rows": (nn.Conv2d(3, 8, 3, stride=2), (3, 8, 8), 2),
    "Linear, example of 2 rows": (nn.Linear(4, 2), (4,), 2),
    "Conv2d, example of 20 rows": (nn.Conv2d(3, 8, 3, padding=1), (3, 8, 8), 20),
}
short = []
for name, (model, shape, rows) in CASES.items():
    said, taken = rows_taken(model, shape, rows)
    print(f"{name}: the program says {said}; of 1, 8, 15, 16, 20, {MOST} rows the file runs {taken}")
    if MOST not in taken:
        short.append((name, max(taken)))
print("files that stop early:", short or "none")
wanted = [(name, 15) for name in list(CASES)[:3]]
sys.exit(short != wanted)
PYTHON
