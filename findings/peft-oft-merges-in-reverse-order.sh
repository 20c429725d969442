#!/usr/bin/env bash
# Two OFT adapters that are active together on a Linear: merging them gives another model than running
# them does, because the rotations are multiplied in the opposite order.
#
# The forward rotates the input by the first adapter, then by the second, then applies the weight. The
# merge rotates the weight by the first and what came out by the second, which is the second rotation
# first on the input. Rotations do not commute, so a subject and a style that were tried out together
# are not what merge_and_unload() ships; a safe merge, whose check is for NaN alone, says nothing either.
# With one adapter, with blocks of size 2 (whose rotations commute, as small tests have them) or on an
# Embedding, the answer is right, and so it is with the names given backwards.
#
# Exits 0 while it behaves so, 1 once the merged model agrees with the unmerged one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet \
  torch==2.13.0 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import copy
import sys
import warnings

import peft
import torch
from torch import nn

warnings.filterwarnings("ignore")
print(f"torch {torch.__version__}, peft {peft.__version__}")


def apart(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


def distances(layer, x, block, names):
    """In float64, from the unmerged model: merged, merged safely, merged with the names backwards."""
    torch.manual_seed(0)
    base = nn.Sequential(layer).double().eval()
    config = peft.OFTConfig(oft_block_size=block, target_modules=["0"])
    adapted = peft.get_peft_model(base, config, adapter_name=names[0])
    for name in names[1:]:
        adapted.add_adapter(name, config)
    adapted.base_model.set_adapter(names)
    adapted = adapted.double().eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "oft" in name:  # A stand-in for training.
                parameter.add_(torch.randn_like(parameter) * 0.1)
        truth = adapted(x)
        ways = ({}, {"safe_merge": True}, {"adapter_names": names[::-1]})
        return [apart(copy.deepcopy(adapted).merge_and_unload(**way)(x), truth) for way in ways]


torch.manual_seed(1)
vectors, tokens = torch.randn(5, 8).double(), torch.randint(0, 20, (3, 5))
both = ["subject", "style"]
CASES = {
    "Linear, one adapter": (nn.Linear(8, 6), vectors, 4, both[:1]),
    "Linear, two, blocks of 2": (nn.Linear(8, 6), vectors, 2, both),
    "Linear, two, blocks of 4": (nn.Linear(8, 6), vectors, 4, both),
    "Embedding, two, blocks of 4": (nn.Embedding(20, 8), tokens, 4, both),
}
found = {name: distances(*case) for name, case in CASES.items()}
for name, (merged, safe, backwards) in found.items():
    print(f"{name:<28} merged off by {merged:.1e}, safely {safe:.1e}, backwards {backwards:.1e}")
one, twos, fours, embedding = found.values()
behaves = (
    max(*one, *twos, *embedding[:2], fours[2]) < 1e-12 and min(*fours[:2], embedding[2]) > 1e-3
)
print("it behaves so" if behaves else "the behaviour has changed")
sys.exit(0 if behaves else 1)
PYTHON
