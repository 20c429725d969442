"""Models with training-time branches, written by hand as papers and repositories write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    """A model whose norms are as after training: no mean is 0, no gamma or variance 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                continue
            drawn = torch.randn(4, module.num_features, generator=generator)
            module.running_mean.copy_(drawn[0] * 0.3)
            module.running_var.copy_(drawn[1].sigmoid() + 0.5)
            module.weight.copy_(drawn[2].sigmoid() + 0.5)
            module.bias.copy_(drawn[3] * 0.2)
    return model.eval()


class RepVgg(nn.Module):
    """relu(bn_3(conv_3(x)) + bn_1(conv_1(x)) + bn_0(x)), in 1 to 3 dimensions."""

    def __init__(self, channels: int, axes: int = 2, groups: int = 1, stride: int = 1) -> None:
        super().__init__()
        options = {"groups": groups, "stride": stride, "bias": False}
        self.dense = CONV[axes](channels, channels, 3, padding=1, **options)
        self.point = CONV[axes](channels, channels, 1, **options)
        self.norms = nn.ModuleList(NORM[axes](channels) for _ in range(2 + (stride == 1)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.dense(x)) + self.norms[1](self.point(x))
        return torch.relu(y + self.norms[2](x) if len(self.norms) > 2 else y)


class Acnet(nn.Module):
    """A square and two thin kernels, the sum scaled per channel."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [((3, 3), (1, 1)), ((1, 3), (0, 1)), ((3, 1), (1, 0))]
        self.convs = nn.ModuleList(nn.Conv2d(4, 6, k, padding=p, bias=False) for k, p in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in shapes)
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        parts = [norm(conv(x)) for norm, conv in zip(self.norms, self.convs, strict=True)]
        return F.gelu(sum(parts) * self.scale)


class Dilated(nn.Module):
    """A large depthwise kernel beside dilated ones (UniRepLKNet's form)."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Conv2d(4, 4, 7, padding=3, groups=4, bias=False)
        self.spread = nn.ModuleList(
            nn.Conv2d(4, 4, 3, padding=d, dilation=d, groups=4, bias=False) for d in (1, 2, 3)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.large(x))
        for conv, norm in zip(self.spread, self.norms[1:], strict=True):
            y = y + norm(conv(x))
        return F.gelu(y)


class Mixer(nn.Module):
    """x + scale * (mixer(x) - norm(x)), as in FastViT, and a mean beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.norm = RepVgg(6, groups=6), nn.BatchNorm2d(6)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer.norms[0](self.mixer.dense(x)) + self.mixer.norms[1](self.mixer.point(x))
        mean = F.avg_pool2d(x, 3, stride=1, padding=1)
        return F.gelu(x + self.scale.reshape(1, -1, 1, 1) * (y - self.norm(x)) - mean / 2)


class Bottleneck(nn.Module):
    """1 x 1 and k x k beside k x k, without padding (the diverse branch block's chain)."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Conv2d(4, 8, 3)
        self.inner, self.outer = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 3, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(4), nn.BatchNorm2d(8)])

    def forward(self, x: Tensor) -> Tensor:
        chain = self.norms[2](self.outer(self.norms[1](self.inner(x))))
        return torch.relu(self.norms[0](self.main(x)) + chain)


class Expanded(nn.Module):
    """One convolution as three (ExpandNets), in place of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 16, 1, bias=False), nn.Conv2d(16, 16, 3, bias=False), nn.Conv2d(16, 6, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x))


class Adapter(nn.Module):
    """A Linear with a low-rank branch and dropout, and heads whose mean is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 8)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.dropout = nn.Dropout(0.1)
        self.norms = nn.ModuleList([nn.BatchNorm1d(8), nn.BatchNorm1d(8)])
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.base(x) + self.up(self.down(self.dropout(x))) * 0.5)
        one, two = (head(norm(y)) for head, norm in zip(self.heads, self.norms, strict=True))
        return (one + two) / 2


class Normed(nn.Module):
    """A weight that is computed from a direction and a length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3, padding="same"))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


# Name, model, shape of an example, regions that are found.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "repvgg": (lambda: RepVgg(6), (2, 6, 7, 7), 1),
    "repvgg-1d": (lambda: RepVgg(6, 1), (2, 6, 9), 1),
    "repvgg-3d": (lambda: RepVgg(4, 3), (2, 4, 5, 5, 5), 1),
    "repvgg-grouped": (lambda: RepVgg(6, groups=2), (2, 6, 7, 7), 1),
    "repvgg-depthwise": (lambda: RepVgg(6, groups=6), (2, 6, 7, 7), 1),
    "repvgg-strided": (lambda: RepVgg(6, stride=2), (2, 6, 8, 8), 1),
    "two-blocks": (lambda: nn.Sequential(RepVgg(4), RepVgg(4, groups=2)), (2, 4, 6, 6), 2),
    "acnet": (Acnet, (2, 4, 7, 7), 1),
    "dilated": (Dilated, (2, 4, 9, 9), 1),
    "mixer": (Mixer, (2, 6, 7, 7), 1),
    "bottleneck": (Bottleneck, (2, 4, 7, 7), 1),
    "expanded": (Expanded, (2, 4, 7, 7), 1),
    "adapter": (Adapter, (4, 8), 2),
    "weight-norm": (Normed, (2, 4, 9), 1),
}


def case(name: str) -> tuple[nn.Module, Tensor, int]:
    """A stirred model, an example, and how many regions it has."""
    build, shape, regions = CASES[name]
    torch.manual_seed(len(name))
    return stirred(build()), torch.randn(shape), regions
