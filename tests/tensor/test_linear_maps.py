"""Sums and chains of convolutions with their geometry, against the layers one after the other."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from quick import covering
from torch import Tensor
from torch.nn import functional as F

from opdf_compile.errors import FoldError
from opdf_compile.tensor import Convolution, LinearMap, average, pointwise

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# Of sums of up to 8 * 49 products of products of numbers about 1, in float64.
CLOSE = {"rtol": 0.0, "atol": 8 * 49 * 16 * 2.0**-52}


def drawn(
    out: int,
    inputs: int,
    *size: int,
    groups: int = 1,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    bias: bool = True,
) -> LinearMap:
    numbers = Convolution(
        torch.randn(out, inputs // groups, *size, dtype=torch.float64),
        torch.randn(out, dtype=torch.float64) * bias,
    )
    axes = len(size)
    return LinearMap(numbers, groups, (stride,) * axes, (padding,) * axes, (dilation,) * axes, bias)


def run(map_: LinearMap, x: Tensor) -> Tensor:
    kernel, bias = map_.numbers.kernel, map_.numbers.bias
    if kernel.ndim == 2:
        return F.linear(x, kernel, bias)
    options = (map_.stride, map_.padding, map_.dilation, map_.groups)
    return CONVOLVE[kernel.ndim - 2](x, kernel, bias, *options)


def image(channels: int, axes: int, size: int = 11) -> Tensor:
    return torch.randn(2, channels, *[size] * axes, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("axes", "groups", "stride"),
    covering([1, 2, 3], [(1, 1), (2, 2), (4, 1), (1, 4), (4, 2)], [1, 2]),
)
def test_a_chain_of_two_larger_kernels(axes: int, groups: tuple[int, int], stride: int) -> None:
    first = drawn(8, 4, *[3] * axes, groups=groups[0], stride=stride, padding=1)
    second = drawn(4, 8, *[2] * axes, groups=groups[1])
    x = image(4, axes, 9)
    both = second.after(first)
    assert both.size == (3 + stride,) * axes
    torch.testing.assert_close(run(both, x), run(second, run(first, x)), **CLOSE)


@pytest.mark.parametrize(("one", "two"), list(itertools.product([1, 2, 3], repeat=2)))
def test_a_chain_of_dilated_kernels(one: int, two: int) -> None:
    first, second = drawn(3, 3, 3, dilation=one), drawn(3, 3, 2, dilation=two)
    x, both = image(3, 1, 17), second.after(first)
    torch.testing.assert_close(run(both, x), run(second, run(first, x)), **CLOSE)


def test_a_chain_keeps_a_dilation_that_it_can_keep() -> None:
    both = drawn(3, 3, 3, 3, dilation=2, padding=2).after(drawn(3, 3, 1, 1, bias=False))
    assert (both.size, both.dilation, both.padding) == ((3, 3), (2, 2), (2, 2))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_padded_chain_after_one_tap_without_bias(stride: int) -> None:
    first = drawn(5, 3, 1, 1, stride=stride, bias=False)
    second = drawn(4, 5, 3, 3, padding=1)
    x, both = image(3, 2), second.after(first)
    torch.testing.assert_close(run(both, x), run(second, run(first, x)), **CLOSE)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ({"size": (1, 1), "bias": True}, "pads with zeros what a bias was added to"),
        ({"size": (3, 3), "bias": False}, "pads with zeros what a larger kernel made"),
    ],
)
def test_a_border_that_no_convolution_has(first: dict[str, object], reason: str) -> None:
    size, bias = first["size"], bool(first["bias"])
    inner, outer = drawn(3, 3, *size, bias=bias), drawn(3, 3, 3, 3, padding=1)  # type: ignore[misc]
    with pytest.raises(FoldError, match=reason):
        outer.after(inner)
    # What it would be without the refusal is another function.
    pretended = replace(inner, biased=False)
    naive = replace(outer, padding=(0, 0)).after(pretended)
    wrong = replace(naive, padding=(1, 1))
    x = image(3, 2)
    right = run(outer, run(inner, x))
    found = run(wrong, x)
    assert found.shape != right.shape or not torch.allclose(found, right)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_sum_of_unlike_kernels(axes: int, stride: int) -> None:
    large = drawn(4, 4, *[3] * axes, groups=2, stride=stride, padding=1)
    small = drawn(4, 4, *[1] * axes, groups=4, stride=stride)
    x, both = image(4, axes, 9), large + small
    assert (both.groups, both.size) == (2, (3,) * axes)
    torch.testing.assert_close(run(both, x), run(large, x) + run(small, x), **CLOSE)


def test_a_sum_of_dilated_kernels_is_written_out() -> None:
    large = drawn(4, 4, 7, 7, groups=4, padding=3)
    spread = drawn(4, 4, 3, 3, groups=4, padding=2, dilation=2)
    x, both = image(4, 2), large + spread
    assert (both.size, both.dilation) == ((7, 7), (1, 1))
    torch.testing.assert_close(run(both, x), run(large, x) + run(spread, x), **CLOSE)


def test_a_sum_with_what_changes_nothing_and_with_a_mean() -> None:
    conv = drawn(4, 4, 3, 3, padding=1)
    pool = replace(pointwise(4, 2), numbers=average(4, 4, (3, 3)), padding=(1, 1), biased=False)
    x = image(4, 2)
    wanted = run(conv, x) + x - F.avg_pool2d(x, 3, 1, 1)
    torch.testing.assert_close(run(conv + pointwise(4, 2) + -pool, x), wanted, **CLOSE)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (drawn(4, 4, 3, 3, padding=1, stride=2), r"strides \[1, 1\] and \[2, 2\]"),
        (drawn(4, 4, 3, 3), r"do not share a centre: sizes \[3, 3\] and \[3, 3\]"),
        (drawn(4, 4, 2, 2), r"do not share a centre: sizes \[3, 3\] and \[2, 2\]"),
    ],
)
def test_a_sum_that_is_no_convolution(other: LinearMap, reason: str) -> None:
    with pytest.raises(FoldError, match=reason):
        drawn(4, 4, 3, 3, padding=1) + other


def test_linear_layers() -> None:
    first, second, beside = drawn(6, 4), drawn(3, 6), drawn(3, 4)
    x = torch.randn(5, 7, 4, dtype=torch.float64)
    both = second.after(first) + beside
    torch.testing.assert_close(run(both, x), run(second, run(first, x)) + run(beside, x), **CLOSE)
    assert not torch.allclose(run(both, x), run(second, run(first, x)))


def test_a_number_for_each_channel_after_a_kernel_keeps_its_groups() -> None:
    scale, shift = torch.randn(2, 4, dtype=torch.float64)
    conv = drawn(4, 4, 3, 3, groups=2, padding=1, bias=False)
    both = pointwise(4, 2).scaled(scale, shift).after(conv)
    assert (both.groups, both.biased) == (2, True)
    x = image(4, 2)
    wanted = run(conv, x) * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(run(both, x), wanted, **CLOSE)


def test_shapes_are_known_without_numbers() -> None:
    on_meta = [
        replace(m, numbers=Convolution(m.numbers.kernel.to("meta"), m.numbers.bias.to("meta")))
        for m in (drawn(8, 4, 3, 3, groups=4, padding=1), drawn(8, 8, 1, 1))
    ]
    both = on_meta[1].after(on_meta[0])
    assert (both.numbers.kernel.shape, both.cost) == ((8, 4, 3, 3), 8 * 4 * 9)
