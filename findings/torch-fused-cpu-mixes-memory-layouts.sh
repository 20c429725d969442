#!/usr/bin/env bash
# PyTorch's fused optimizers on a CPU pair up the wrong entries, without a word, where a state or a
# gradient lies in memory otherwise than its parameter.
#
# The kernels walk over parameter, gradient and state as they lie. On a GPU such tensors are refused
# (pytorch issue 106951); on a CPU nothing is said. The way into it is ordinary: train a convolution,
# then move the model to channels_last, or resume a run of the one layout in the other. Parameters turn
# in place, the optimizer's averages stay as they were, and from then on each weight is stepped by the
# averages of another one. Loop and foreach get the right answer. A gradient that was assigned
# transposed has the same fate. Nor does the fused step count as a write to the parameter (its version
# stays), so that code which looks there sees no step.
#
# Exits 0 while it behaves so, 1 once the fused step agrees with the loop or refuses.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch

print(f"torch {torch.__version__}")
WAYS = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def trained(kind, options, turn):
    """Ten steps of a convolution in float64; after five it is moved to channels_last, or not."""
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 4, 3).double()
    x, y = torch.randn(8, 3, 8, 8).double(), torch.randn(8, 4, 6, 6).double()
    optimizer = kind(net.parameters(), lr=1e-2, **options)
    begun = net.weight.detach().clone()
    for step in range(10):
        if turn and step == 5:
            net.to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        before = net.weight._version
        optimizer.step()
    return net.weight.detach(), begun, net.weight._version - before


def assigned(options):
    """One step of SGD with a gradient that lies transposed."""
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.arange(6.0).reshape(3, 2).t()
    torch.optim.SGD([weight], lr=1.0, **options).step()
    return weight.detach()


wrong, right, counted = [], [], {}
for kind in (torch.optim.Adam, torch.optim.AdamW):
    for turn in (False, True):
        loop, begun, _count = trained(kind, WAYS["loop"], turn)
        path = float((loop - begun).abs().max())
        for name in ("foreach", "fused"):
            found, _begun, counted[name] = trained(kind, WAYS[name], turn)
            off = float((found - loop).abs().max())
            where = "moved to channels_last" if turn else "not moved"
            print(f"{kind.__name__:<6} {name:<8} {where:<23} off by {off:.1e} of a path of {path:.3f}")
            bad = turn and name == "fused"
            (wrong if bad else right).append(off / path)

once = {name: assigned(options).tolist() for name, options in WAYS.items()}
print("SGD, a transposed gradient:", once)
print("writes that a step counts on the parameter:", counted)
behaves = (
    min(wrong) > 0.1
    and max(right) < 1e-9
    and once["loop"] == once["foreach"] != once["fused"]
    and counted["fused"] == 0 < counted["foreach"]
)
print("it behaves so" if behaves else "the behaviour has changed")
sys.exit(0 if behaves else 1)
PYTHON
