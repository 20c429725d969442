#!/usr/bin/env bash
# Seeds that differ above the 32nd bit draw the same numbers from PyTorch's generator of the CPU.
#
# torch.manual_seed takes 64 bits, and initial_seed() gives all of them back, but the Mersenne
# twister behind it is started from the lower 32. A job that builds its seeds as (run << 32) + step,
# or takes 64-bit seeds of several experiments from a hash that differs in its upper half, starts
# every run from the same weights and shuffles every run alike, while its log shows unlike seeds:
# the spread over "seeds" is then 0, or that of something else. numpy and Python's random use all bits.
#
# Exits 0 while it behaves so, 1 once such seeds draw unlike numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import random
import sys

import numpy as np
import torch

print(f"torch {torch.__version__}, numpy {np.__version__}")
RUNS = [(run << 32) + 7 for run in range(4)]


def weights(seed):
    torch.manual_seed(seed)
    return torch.nn.Linear(3, 2).weight.detach().flatten().tolist()


def order(seed):
    return torch.randperm(8, generator=torch.Generator().manual_seed(seed)).tolist()


said = [torch.Generator().manual_seed(seed).initial_seed() for seed in RUNS]
print("the seeds that the generators name:", said)
starts, orders = [weights(seed) for seed in RUNS], [order(seed) for seed in RUNS]
print("start weights of four runs:", *(f"{start[0]:.6f}" for start in starts))
print("orders of four runs:       ", *orders)
numpy_draws = {float(np.random.default_rng(seed).random()) for seed in RUNS}
python_draws = {random.Random(seed).random() for seed in RUNS}
print("unlike draws of numpy and of random:", len(numpy_draws), len(python_draws))

same = all(start == starts[0] for start in starts) and all(o == orders[0] for o in orders)
others = len(numpy_draws) == len(python_draws) == len(RUNS) and len(set(said)) == len(RUNS)
print("it behaves so" if same and others else "the behaviour has changed")
sys.exit(0 if same and others else 1)
PYTHON
