"""Branches as modules of torch's own, so that whatever knows those knows these.

SyncBatchNorm's conversion, AMP, torch.compile, gradient checkpointing and DDP see plain
convolutions and plain norms. One holder of modules serves both forms: in the module form it runs,
in the inline form the graph reads its tensors.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from opdf_compile.parametrizations import (
    Average,
    Branch,
    Conv,
    Norm,
    SiteSpec,
    branch_of,
)

_MEANS: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class _PlusInput:
    """A convolution of size 1 that learns the difference from the identity."""

    def forward(self, x: Tensor) -> Tensor:
        """What the convolution makes of the input, and the input."""
        made: Tensor = super().forward(x)  # type: ignore[misc]
        return made + x


class PointPlus1d(_PlusInput, nn.Conv1d):
    """Of sequences."""


class PointPlus2d(_PlusInput, nn.Conv2d):
    """Of images."""


class PointPlus3d(_PlusInput, nn.Conv3d):
    """Of volumes."""


_CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_PLUS: dict[int, Any] = {1: PointPlus1d, 2: PointPlus2d, 3: PointPlus3d}


class BranchLayers(nn.Module):
    """The layers of one branch, under the names of its steps.

    Attributes:
        branch: What they are.
    """

    def __init__(self, branch: Branch, spec: SiteSpec) -> None:
        """Make the layers; their numbers are whatever torch gives them."""
        super().__init__()
        self.branch = branch
        for name, step in branch.steps:
            self.add_module(name, _layer(step, spec))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, *sizes) -> (batch, out, *sizes of the site's output)."""
        for name, step in self.branch.steps:
            layer = getattr(self, name)
            x = layer(x)
            if isinstance(step, Norm) and any(step.border):
                x = bordered(x, layer, step.border)
        return x


def _layer(step: Conv | Norm | Average, spec: SiteSpec) -> nn.Module:
    axes = spec.axes
    made: nn.Module
    if isinstance(step, Norm):
        made = _NORMS[axes](step.features, eps=spec.eps, momentum=spec.momentum)
    elif isinstance(step, Average):
        made = _MEANS[axes](step.kernel, step.stride, step.padding)
    else:
        kind = (_PLUS if step.plus_input else _CONVS)[axes]
        channels = step.shape[1] * step.groups
        # Numbers that torch draws here would be taken from what the caller draws next.
        without: Any = skip_init
        made = without(
            kind,
            channels,
            step.shape[0],
            step.shape[2:],
            stride=step.stride,
            padding=step.padding,
            dilation=step.dilation,
            groups=step.groups,
            bias=False,
        )
    return made


def bordered(x: Tensor, norm: Any, border: Sequence[int]) -> Tensor:
    """A norm's output continued on all sides by what the norm makes of zero in eval mode.

    In training, too: a value of the batch's statistics would be another one (as the published code
    of Diverse Branch Block has it).
    """
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    # A copy: the next forward moves the buffer, and this one's backward still reads it.
    edge = norm.bias - norm.running_mean.clone() * scale
    # Under autocast the output is of a shorter dtype than the norm's own numbers.
    edge = edge.to(x.dtype).reshape(-1, *[1] * len(border))
    pads = [size for size in reversed(border) for _side in range(2)]
    made: Tensor = F.pad(x - edge, pads) + edge
    return made


def branch_layers(key: str, spec: SiteSpec, norm: Tensor) -> nn.ModuleDict:
    """The branches of a site, with the numbers that they start from.

    Convolutions start as torch's do, uniformly within 1 / sqrt(fan in), or at the identity where
    they learn a difference from it. The draw depends on names and seed alone.

    Args:
        key: Name of the site's weight.
        spec: Its branches.
        norm: A tensor of the site's norm: the norms of branches have its dtype, which may be a
            longer one than the convolution's, and all of them are on its device.

    Returns:
        By name.
    """
    made = nn.ModuleDict()
    for name in spec.branches:
        layers = BranchLayers(branch_of(name, spec), spec)
        _start(f"{key}/{name}", layers, spec)
        made[name] = layers.to(device=norm.device, dtype=getattr(torch, spec.dtype))
    for module in made.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.to(norm.dtype)
    return made


@torch.no_grad()
def _start(path: str, layers: BranchLayers, spec: SiteSpec) -> None:
    steps = layers.branch.steps
    for name, step in steps:
        layer = getattr(layers, name)
        if isinstance(step, Conv) and step.plus_input:
            layer.weight.zero_()
        elif isinstance(step, Conv):
            # 32 bits: torch's generator of the CPU takes no more.
            seed = zlib.crc32(f"{path}/{name}/{spec.seed}".encode())
            drawn = torch.Generator().manual_seed(seed)
            reach = layer.weight[0].numel() ** -0.5
            layer.weight.uniform_(-reach, reach, generator=drawn)
    if spec.start == "exact":
        getattr(layers, steps[-1][0]).weight.zero_()
