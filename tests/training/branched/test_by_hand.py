"""The published blocks written out by hand, trained beside the inline form, folded by hand.

Nothing here shares code with the package: convolutions and batch_norm of torch, borders written
entry by entry, kernels merged by einsum.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quick import quick
from sites import Stack, batch, stirred
from torch import Tensor, nn
from torch.nn import functional as F

import opdf_compile as opdf

EPS = 1e-5


class Norm(nn.Module):
    """batch_norm and its numbers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.zeros(channels)) for _ in range(2))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean: Any = self.running_mean
        var: Any = self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, 0.1, EPS)

    def scale(self) -> Tensor:
        var: Any = self.running_var
        return self.weight / (var + EPS) ** 0.5


class Kernel(nn.Module):
    """A weight alone."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


class Branch(nn.Module):
    """A convolution, or none, and a norm."""

    def __init__(self, out: int, *kernel: int) -> None:
        super().__init__()
        self.conv = Kernel(*kernel) if kernel else None
        self.norm = Norm(out)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            sizes = self.conv.weight.shape[2:]
            x = F.conv2d(x, self.conv.weight, padding=[size // 2 for size in sizes])
        return self.norm(x)

    def merged(self) -> tuple[Tensor, Tensor]:
        """A 3 x 3 kernel before the norm, and what it adds to the norm's input."""
        out = self.norm.weight.shape[0]
        if self.conv is None:
            made = torch.zeros(out, out, 3, 3, dtype=torch.float64)
            made[:, :, 1, 1] = torch.eye(out, dtype=torch.float64)
            return made, torch.zeros(out, dtype=torch.float64)
        weight = self.conv.weight.detach()
        made = torch.zeros(*weight.shape[:2], 3, 3, dtype=torch.float64)
        high, wide = weight.shape[2:]
        rows = slice(1 - high // 2, 2 + high // 2)
        made[:, :, rows, 1 - wide // 2 : 2 + wide // 2] = weight
        return made, torch.zeros(out, dtype=torch.float64)


class Bordered(nn.Module):
    """1 x 1, a norm continued by what it makes of zero, and 3 x 3 or a mean."""

    def __init__(self, reads: int, out: int, *, full: bool) -> None:
        super().__init__()
        inner = reads if full else out
        self.full = full
        self.conv1, self.norm1 = Kernel(inner, reads, 1, 1), Norm(inner)
        if full:
            self.conv = Kernel(out, inner, 3, 3)
        self.norm = Norm(out)

    def first(self) -> Tensor:
        """The 1 x 1 of the diverse branch block before 3 x 3 learns a difference from I."""
        weight = self.conv1.weight[:, :, 0, 0]
        return weight + torch.eye(len(weight), dtype=torch.float64) if self.full else weight

    def edge(self) -> Tensor:
        mean: Any = self.norm1.running_mean
        return self.norm1.bias - mean.clone() * self.norm1.scale()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(F.conv2d(x, self.first()[:, :, None, None]))
        rows = [self.edge()[None, :, None, None].expand(len(y), -1, 1, y.shape[3])] * 2
        y = torch.cat([rows[0], y, rows[1]], 2)
        columns = [self.edge()[None, :, None, None].expand(len(y), -1, y.shape[2], 1)] * 2
        y = torch.cat([columns[0], y, columns[1]], 3)
        y = F.conv2d(y, self.conv.weight) if self.full else F.avg_pool2d(y, 3, 1)
        return self.norm(y)

    def merged(self) -> tuple[Tensor, Tensor]:
        scale, first = self.norm1.scale(), self.first()
        if self.full:
            second = self.conv.weight
        else:
            second = torch.eye(len(first), dtype=torch.float64)[:, :, None, None] / 9
            second = second.expand(-1, -1, 3, 3)
        kernel = torch.einsum("omuv,m,mi->oiuv", second, scale, first)
        return kernel.detach(), torch.einsum("omuv,m->o", second, self.edge()).detach()


def branches(form: str, reads: int, out: int) -> nn.ModuleDict:
    point = {"point": Branch(out, out, reads, 1, 1)}
    if form == "repvgg":
        return nn.ModuleDict(point | ({"identity": Branch(out)} if reads == out else {}))
    if form == "acnet":
        crossed = Branch(out, out, reads, 1, 3), Branch(out, out, reads, 3, 1)
        return nn.ModuleDict({"row": crossed[0], "column": crossed[1]})
    both = Bordered(reads, out, full=True), Bordered(reads, out, full=False)
    return nn.ModuleDict(point | {"point_full": both[0], "point_average": both[1]})


class Hand(nn.Module):
    """Stack(), with branches."""

    def __init__(self, form: str) -> None:
        super().__init__()
        body: dict[str, nn.Module] = {}
        for place, reads in (("0", 3), ("3", 6)):
            body[place] = nn.Conv2d(reads, 6, 3, padding=1)
            body[str(int(place) + 1)] = Norm(6)
            body[f"{place}_"] = branches(form, reads, 6)
        self.body, self.head = nn.ModuleDict(body), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        for place in ("0", "3"):
            y = self.body[str(int(place) + 1)](self.body[place](x))
            beside: Any = self.body[f"{place}_"]
            x = torch.relu(sum((branch(x) for branch in beside.values()), start=y))
        return self.head(x.flatten(2).mean(2))

    def folded(self) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for place in ("0", "3"):
            conv: Any = self.body[place]
            norm: Any = self.body[str(int(place) + 1)]
            weight, mean, beta = conv.weight.clone(), norm.running_mean.clone(), norm.bias.clone()
            beside: Any = self.body[f"{place}_"]
            for branch in beside.values():
                kernel, shift = branch.merged()
                ratio = branch.norm.scale() / norm.scale()
                weight = weight + ratio[:, None, None, None] * kernel
                mean = mean + ratio * (branch.norm.running_mean - shift)
                beta = beta + branch.norm.bias
            made |= {f"body.{place}.weight": weight, f"body.{place}.bias": conv.bias}
            values = {"weight": norm.weight, "bias": beta, "running_mean": mean}
            values["running_var"] = norm.running_var
            made |= {f"body.{int(place) + 1}.{name}": value for name, value in values.items()}
        return made | {f"head.{name}": value for name, value in self.head.named_parameters()}


def train(model: nn.Module, optimizer: Any) -> None:
    # Biases before a norm have gradients of rounding alone, 1e-17; AdamW divides them by its eps.
    options: Any = {torch.optim.SGD: {"momentum": 0.9}, torch.optim.AdamW: {"eps": 1e-6}}
    inner = optimizer(model.parameters(), lr=0.02, weight_decay=1e-3, **options[optimizer])
    model.train()
    for seed in range(10):
        inner.zero_grad()
        model(batch(seed=seed)).square().mean().backward()
        inner.step()


@pytest.mark.parametrize(
    "optimizer", quick([torch.optim.SGD, torch.optim.AdamW], {torch.optim.AdamW})
)
@pytest.mark.parametrize("form", ["repvgg", "acnet", "dbb"])
def test_ten_steps_beside_the_block_by_hand(
    form: str, optimizer: type[torch.optim.Optimizer]
) -> None:
    torch.manual_seed(0)
    plain = stirred(Stack()).double()
    traced = opdf.trace(plain, (batch(),))
    training = opdf.expand(traced, opdf.plan(traced, parametrization=f"{form}(start=published)"))
    hand = Hand(form).double()
    given = {
        name.replace(".weight_branches", "_"): value
        for name, value in training.state_dict().items()
        if "num_batches_tracked" not in name
    }
    hand.load_state_dict(given)
    for model in (training, hand):
        train(model, optimizer)
    torch.testing.assert_close(training.eval()(batch()), hand.eval()(batch()), rtol=0, atol=1e-10)
    folded, wanted = opdf.fold(training).state_dict(), hand.folded()
    assert {name for name in folded if "num_batches" not in name} == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(folded[name], value.detach(), rtol=1e-10, atol=1e-10)
    # The check sees what training did.
    assert not torch.allclose(
        plain.state_dict()["body.0.weight"], folded["body.0.weight"], atol=0.1
    )
