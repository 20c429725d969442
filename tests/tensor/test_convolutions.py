"""Sums and chains of convolutions against the layers themselves, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from opdf_compile.errors import InternalError
from opdf_compile.tensor import Convolution, Normalization, average, composed, identity

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

# Of sums of up to 8 * 27 products of numbers about 1, in float64.
CLOSE = {"rtol": 0.0, "atol": 216 * 8 * 2.0**-52}


def drawn(out: int, columns: int, *size: int) -> Convolution:
    return Convolution(
        torch.randn(out, columns, *size, dtype=torch.float64),
        torch.randn(out, dtype=torch.float64),
    )


def inputs(channels: int, axes: int) -> torch.Tensor:
    return torch.randn(2, channels, *[7] * axes, dtype=torch.float64)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_a_chain_is_the_second_after_the_first(axes: int, groups: int, size: int) -> None:
    torch.manual_seed(axes + groups)
    first, second = drawn(6, 4 // groups, *[size] * axes), drawn(8, 6 // groups, *[3] * axes)
    x, run = inputs(4, axes), CONVOLVE[axes]
    inner = run(x, first.kernel, first.bias, groups=groups)
    wanted = run(inner, second.kernel, second.bias, groups=groups)
    both = composed(first, second, groups)
    found = run(x, both.kernel, both.bias, groups=groups)
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_a_chain_at_a_border_reads_the_bias_of_the_first() -> None:
    torch.manual_seed(0)
    first, second, x = drawn(5, 3, 1, 1), drawn(4, 5, 3, 3), inputs(3, 2)
    both = composed(first, second)
    found = F.conv2d(x, both.kernel, both.bias, padding=1)
    inner = F.conv2d(F.pad(x, [1, 1, 1, 1]), first.kernel, first.bias)
    torch.testing.assert_close(found, F.conv2d(inner, second.kernel, second.bias), **CLOSE)
    zeros = F.conv2d(F.conv2d(x, first.kernel, first.bias), second.kernel, second.bias, padding=1)
    assert not torch.allclose(found, zeros)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_in_the_middle_of_a_larger_one(stride: int) -> None:
    torch.manual_seed(0)
    small, x = drawn(4, 3, 1, 3), inputs(3, 2)
    large = small.centred((3, 5))
    found = F.conv2d(x, large.kernel, large.bias, stride=stride, padding=(1, 2))
    wanted = F.conv2d(x, small.kernel, small.bias, stride=stride, padding=(0, 1))
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("size", [(2, 3), (1, 1)])
def test_a_kernel_that_has_no_middle_there(size: tuple[int, int]) -> None:
    with pytest.raises(InternalError, match=r"size \[1, 3\] was to be centred"):
        drawn(4, 3, 1, 3).centred(size)


def test_a_dilated_kernel_written_out() -> None:
    torch.manual_seed(0)
    small, x = drawn(3, 1, 3, 3), inputs(3, 2)
    large = small.dilated((2, 3))
    assert large.kernel.shape == (3, 1, 5, 7)
    found = F.conv2d(x, large.kernel, large.bias, padding=(2, 3), groups=3)
    wanted = F.conv2d(x, small.kernel, small.bias, padding=(2, 3), dilation=(2, 3), groups=3)
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_a_norm_in_eval_mode() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, eps=0.1).double().eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.1, 2.0)
    map_, x = drawn(4, 3, 3, 3), inputs(3, 2)
    own = Normalization(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    both = own.after(map_)
    found = F.conv2d(x, both.kernel, both.bias)
    torch.testing.assert_close(found, norm(F.conv2d(x, map_.kernel, map_.bias)), **CLOSE)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_identity_and_the_mean(groups: int) -> None:
    x = inputs(6, 2)
    one = identity(6, groups, 2)
    assert torch.equal(F.conv2d(x, one.kernel, one.bias, groups=groups), x)
    mean = average(6, groups, (3, 3))
    found = F.conv2d(x, mean.kernel, mean.bias, groups=groups, padding=1)
    torch.testing.assert_close(found, F.avg_pool2d(x, 3, 1, 1), **CLOSE)


def test_sums() -> None:
    torch.manual_seed(0)
    one, two, x = drawn(4, 3, 3, 3), drawn(4, 3, 3, 3), inputs(3, 2)
    both = one + two
    wanted = F.conv2d(x, one.kernel, one.bias) + F.conv2d(x, two.kernel, two.bias)
    torch.testing.assert_close(F.conv2d(x, both.kernel, both.bias), wanted, **CLOSE)
    with pytest.raises(InternalError, match="centre the smaller one"):
        one + drawn(4, 3, 1, 1)
