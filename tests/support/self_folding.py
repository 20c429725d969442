"""Classes that fold themselves, rightly and wrongly."""

from __future__ import annotations

import torch
from branched_models import RepVgg, stirred
from torch import Tensor, nn

from opdf_compile.foreign.folding import fold_model


class Deployable(RepVgg):
    """A block with the method of RepVGG's repository; `wrong` says what its author forgot."""

    def __init__(self, channels: int, wrong: str = "") -> None:
        super().__init__(channels)
        self.wrong, self.deployed = wrong, False

    def switch_to_deploy(self) -> None:
        if self.wrong == "stub":
            return
        if self.wrong == "narrows":
            self.dense.half()
            return
        if self.wrong == "raises":
            raise RuntimeError("no deploy for this form")
        branches = self if self.wrong != "forgets" else _without_identity(self)
        state = fold_model(branches, (torch.randn(2, 4, 6, 6),), by="graph").state
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.conv.load_state_dict({"weight": state["weight"], "bias": state["bias"]})
        del self.dense, self.point, self.norms
        self.deployed = True

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)) if self.deployed else super().forward(x)


def _without_identity(block: RepVgg) -> RepVgg:
    """A plain block with the branches of another one but the last."""
    fresh = RepVgg(4)
    fresh.load_state_dict(block.state_dict())
    nn.init.zeros_(fresh.norms[2].weight)
    nn.init.zeros_(fresh.norms[2].bias)
    return fresh.eval()


class Merging(nn.Module):
    """A model with adapters as PEFT gives it, around a base; `stub` drops the adapters instead."""

    def __init__(self, stub: bool = False) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.down = nn.ModuleList([nn.Linear(6, 2, bias=False), nn.Linear(8, 2, bias=False)])
        self.up = nn.ModuleList([nn.Linear(2, 8, bias=False), nn.Linear(2, 4, bias=False)])
        self.stub = stub

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.base[0](x) + self.up[0](self.down[0](x)))
        return self.base[2](y) + self.up[1](self.down[1](y))

    def merge_and_unload(self) -> nn.Module:
        for place, up, down in zip((0, 2), self.up, self.down, strict=True):
            if not self.stub:
                self.base[place].weight += up.weight @ down.weight
        return self.base


def network(wrong: str = "") -> nn.Module:
    """Two blocks and a head."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), Deployable(4, wrong), Deployable(4)
    )
    return stirred(nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)))
