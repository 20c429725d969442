"""A site is found where a BatchNorm alone reads a convolution; every other weight says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quick import quick
from sites import Stack
from torch import Tensor, nn
from torch.nn import functional as F

import opdf_compile as opdf
from opdf_compile.graph import Site, find_sites


def found(model: nn.Module, *inputs: Tensor) -> dict[str, Site | str]:
    return find_sites(opdf.trace(model, inputs))


IMAGE = torch.randn(2, 3, 8, 8)


class One(nn.Module):
    """One convolution and one norm, put together by `run`."""

    def __init__(
        self, run: Any, conv: nn.Module | None = None, norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv = conv or nn.Conv2d(3, 3, 3, padding=1)
        self.norm = norm or nn.BatchNorm2d(3)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.run(self, x)
        return made


def plainly(model: One, x: Tensor) -> Tensor:
    made: Tensor = model.norm(model.conv(x))
    return made


# The other axes are branched in tests/training/branched/test_branching.py.
@pytest.mark.parametrize("axes", quick([1, 2, 3], {2}))
def test_every_block_of_a_stack(axes: int) -> None:
    sites = found(Stack(axes), torch.randn(2, 3, *[6] * axes))
    assert isinstance(sites["body.0.weight"], Site) and isinstance(sites["body.3.weight"], Site)
    assert sites["head.weight"] == (
        "is read by linear: branches with batch statistics stand beside a convolution"
    )


def test_what_a_site_says() -> None:
    conv = nn.Conv2d(4, 6, (3, 5), stride=(1, 2), padding=(1, 2), groups=2, bias=False)
    norm = nn.BatchNorm2d(6, eps=1e-3, momentum=0.2)
    site = found(One(plainly, conv, norm), torch.randn(2, 4, 8, 8))["conv.weight"]
    assert site == Site(
        key="conv.weight",
        norm={n: f"norm.{n}" for n in ("weight", "bias", "running_mean", "running_var")},
        shape=(6, 2, 3, 5),
        dtype="float32",
        stride=(1, 2),
        padding=(1, 2),
        dilation=(1, 1),
        groups=2,
        eps=1e-3,
        momentum=0.2,
        bias=None,
        outputs=2 * 8 * 4,
    )


class Functional(nn.Module):
    """Parameters and buffers without layers."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.gamma, self.beta = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.w, padding="same")
        return F.batch_norm(y, self.mean, self.var, self.gamma, self.beta, self.training)


def test_a_site_of_functions() -> None:
    site = found(Functional(), IMAGE)["w"]
    assert isinstance(site, Site)
    assert site.padding == (1, 1) and site.norm["running_var"] == "var"


def test_same_padding_of_an_even_kernel_has_unlike_sides() -> None:
    site = found(One(plainly, nn.Conv2d(3, 3, 4, padding="same")), IMAGE)["conv.weight"]
    assert isinstance(site, Site) and site.padding == (-1, -1)


def twice(model: One, x: Tensor) -> Tensor:
    return plainly(model, F.relu(plainly(model, x)))


def shortcut(model: One, x: Tensor) -> Tensor:
    y = model.conv(x)
    made: Tensor = model.norm(y) + y
    return made


def unread(model: One, x: Tensor) -> Tensor:
    made: Tensor = model.norm(F.relu(model.conv(x)))
    return made


def penalised(model: One, x: Tensor) -> Tensor:
    return plainly(model, x) * model.conv.weight.sum()


def gained(model: One, x: Tensor) -> Tensor:
    return plainly(model, x) * model.norm.weight.sum()


def sliced(model: One, x: Tensor) -> Tensor:
    y = F.conv2d(x, model.conv.weight[:3], padding=1)
    made: Tensor = model.norm(y)
    return made


def alone(model: One, x: Tensor) -> Tensor:
    model.norm(x)
    made: Tensor = model.conv(x)
    return made


REASONS = {
    "shared": (One(twice), "is read 2 times in the train graph"),
    "an op before the norm": (One(unread), "that relu reads, not a BatchNorm"),
    "another reader": (One(shortcut), "whose output 1 other ops read before its BatchNorm"),
    "a reader of the weight": (One(penalised), "is read 2 times in the train graph"),
    "a reader of the gain": (One(gained), "a BatchNorm whose weight other ops read as well"),
    "a computed weight": (One(sliced), "is read by slice"),
    "no norm": (One(alone), "that the caller reads, not a BatchNorm"),
    "no statistics": (
        One(plainly, norm=nn.BatchNorm2d(3, track_running_stats=False)),
        "has a BatchNorm without running statistics",
    ),
    "no gain": (One(plainly, norm=nn.BatchNorm2d(3, affine=False)), "without gain and bias"),
    "transposed": (
        One(plainly, nn.ConvTranspose2d(3, 3, 3, padding=1)),
        "is read by conv_transpose2d",
    ),
    "a group norm": (One(plainly, norm=nn.GroupNorm(1, 3)), "that group_norm reads"),
}


@pytest.mark.parametrize("case", REASONS)
def test_why_a_weight_is_no_site(case: str) -> None:
    model, reason = REASONS[case]
    said = found(model, IMAGE)["conv.weight"]
    assert isinstance(said, str) and reason in said


def test_a_frozen_norm() -> None:
    model = One(plainly)
    model.norm.eval()
    assert "frozen BatchNorm" in str(found(model, IMAGE)["conv.weight"])


def test_a_frozen_weight() -> None:
    model = One(plainly)
    model.conv.weight.requires_grad_(False)
    assert str(found(model, IMAGE)["conv.weight"]).startswith("is frozen")


def test_a_model_with_a_graph_of_one_phase_alone() -> None:
    """The average over all batches divides by a count, which no graph of training holds."""
    model = One(plainly, norm=nn.BatchNorm2d(3, momentum=None))
    said = found(model, IMAGE)["conv.weight"]
    assert said == "stands in a model without a graph of both phases"
