#!/usr/bin/env bash
# PEFT's HRA and BOFT adapters of a Conv2d run another convolution than the one they were put on.
#
# Both rotate the kernel and start from the identity, so a fresh adapter should change nothing. But
# their forward calls the convolution anew and passes on only the first entry of the stride and of the
# padding: dilation, padding_mode and the second entries are dropped. A layer with reflect padding runs
# with zeros around it, a dilated one runs dense, a stride of (2, 1) becomes (2, 2). Where the shapes
# still fit (reflect padding always, the others before a global pooling) nothing is said. Training then
# fits a network that nobody built, and merge_and_unload() puts what it learned into the original
# layer: the model that is shipped is not the one that was trained and validated. Disabling the adapter
# gives the base model back, so a check against the base finds nothing. A plain layer is right.
#
# Exits 0 while it behaves so, 1 once the adapters keep the layer's geometry or refuse it.
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
LAYERS = {
    "plain": {"padding": 1},
    "reflect padding": {"padding": 1, "padding_mode": "reflect"},
    "dilation 2": {"padding": 2, "dilation": 2},
    "stride (2, 1)": {"padding": 1, "stride": (2, 1)},
}
ADAPTERS = {
    "HRA": lambda: peft.HRAConfig(r=2, target_modules=["0"]),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=["0"]),
}


def apart(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


def distances(config, options):
    """In float64: fresh adapter from base; trained one: merged from unmerged, disabled from base."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, **options)
    base = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    x = torch.randn(2, 4, 9, 9).double()
    adapted = peft.get_peft_model(copy.deepcopy(base), config()).double().eval()
    with torch.no_grad():
        truth = base(x)
        fresh = apart(adapted(x), truth)
        for parameter in adapted.parameters():
            if parameter.requires_grad:  # A stand-in for training.
                parameter.add_(torch.randn_like(parameter) * 0.3)
        merged = copy.deepcopy(adapted).merge_and_unload()(x)
        trained = apart(merged, adapted(x))
        with adapted.disable_adapter():
            disabled = apart(adapted(x), truth)
    return fresh, trained, disabled


right, wrong = [], []
for adapter, config in ADAPTERS.items():
    for layer, options in LAYERS.items():
        fresh, trained, disabled = distances(config, options)
        right.append(disabled)
        (right if layer == "plain" else wrong).extend([fresh, trained])
        print(
            f"{adapter:<5} {layer:<16} fresh from base {fresh:.1e}, trained: merged from unmerged "
            f"{trained:.1e}, disabled from base {disabled:.1e}"
        )
behaves = max(right) < 1e-12 and min(wrong) > 1e-3
print("it behaves so" if behaves else "the behaviour has changed")
sys.exit(0 if behaves else 1)
PYTHON
