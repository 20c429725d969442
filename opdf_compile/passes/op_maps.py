"""The map of each operator that `linear_ops` knows, with the numbers of its constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from opdf_compile.errors import FoldError
from opdf_compile.graph import CONVOLUTIONS, arguments, geometry, per_axis
from opdf_compile.passes.constants import Constants
from opdf_compile.passes.linear_ops import (
    LINEAR,
    NORM,
    PADS,
    POOLS,
    PRODUCTS,
    QUOTIENTS,
    SUMS,
    shape_of,
)
from opdf_compile.tensor import Convolution, LinearMap, Normalization, average, pointwise


class OpMaps:
    """Reads the maps of the ops of one region.

    Args:
        axes: Spatial axes of its values; 0 where the channels are the last axis (Linear).
        constants: Reads their constants.
        varying: The nodes that depend on an input.
    """

    def __init__(self, axes: int, constants: Constants, varying: frozenset[Node]) -> None:
        """Nothing is read yet."""
        self._axes, self._constants, self._varying = axes, constants, varying

    def __call__(self, node: Node) -> LinearMap | None:
        """What an op does to the sum of its operands; None where it does nothing.

        Raises:
            FoldError: It is no map of such a region; the message is the reason.
        """
        if node.target is LINEAR:
            return self._linear(node)
        if node.target in CONVOLUTIONS:
            return self._convolution(node, CONVOLUTIONS[node.target])
        if node.target is NORM:
            return self._norm(node)
        if node.target in POOLS:
            return self._pool(node)
        if node.target in PADS:
            return self._pad(node)
        if node.target in (*SUMS, *PRODUCTS, *QUOTIENTS):
            return self._with_constant(node)
        return None

    def _linear(self, node: Node) -> LinearMap:
        return LinearMap(self._numbers(node), 1, (), (), (), arguments(node)["bias"] is not None)

    def _convolution(self, node: Node, axes: int) -> LinearMap:
        if len(shape_of(node)) != axes + 2:
            raise FoldError(f"{node.target} reads a value without a batch axis")
        numbers = self._numbers(node)
        stride, padding, dilation, groups = geometry(node, tuple(numbers.kernel.shape[2:]))
        if -1 in padding:
            raise FoldError("a convolution with padding 'same' pads one end more than the other")
        biased = arguments(node)["bias"] is not None
        return LinearMap(numbers, groups, stride, padding, dilation, biased)

    def _numbers(self, node: Node) -> Convolution:
        given = arguments(node)
        kernel, bias = self._constants(given["weight"]), given["bias"]
        none = kernel.new_zeros(kernel.shape[0])
        return Convolution(kernel, none if bias is None else self._constants(bias))

    def _norm(self, node: Node) -> LinearMap:
        if self._axes == 0 and len(shape_of(node)) != 2:
            raise FoldError("a batch norm over axis 1 stands beside a Linear over the last axis")
        given = arguments(node)
        mean, var = (self._constants(given[f"running_{name}"]) for name in ("mean", "var"))
        gamma, beta = given["weight"], given["bias"]
        norm = Normalization(
            torch.ones_like(mean) if gamma is None else self._constants(gamma),
            torch.zeros_like(mean) if beta is None else self._constants(beta),
            mean,
            var,
            given["eps"],
        )
        return self.identity(node).scaled(norm.scale, norm.shift)

    def _pool(self, node: Node) -> LinearMap:
        given, one = arguments(node), self._spatial(node)
        size = per_axis(given["kernel_size"], self._axes)
        numbers = average(one.groups, one.groups, size, one.numbers.kernel)
        stride = per_axis(given["stride"], self._axes) if given["stride"] else size
        padding = per_axis(given["padding"], self._axes)
        return LinearMap(numbers, one.groups, stride, padding, one.dilation, False)

    def _pad(self, node: Node) -> LinearMap:
        one = self._spatial(node)
        ends = tuple(reversed(arguments(node)["pad"][::2]))
        if any(ends[: -self._axes]):
            raise FoldError("a padding adds channels")
        padding = (*(0,) * (self._axes - len(ends)), *ends[-self._axes :])
        return LinearMap(one.numbers, one.groups, one.stride, padding, one.dilation, False)

    def _spatial(self, node: Node) -> LinearMap:
        if self._axes == 0:
            raise FoldError(f"{node.target} stands beside a Linear, which has no spatial axes")
        return self.identity(node)

    def _with_constant(self, node: Node) -> LinearMap | None:
        """A product, a quotient or a sum with one constant; None for a sum of two inputs."""
        place = next((i for i, a in enumerate(node.args[:2]) if a not in self._varying), None)
        if place is None:
            return None
        one, given = self.identity(node), node.args[place]
        if node.target in SUMS:
            if isinstance(given, int | float) and given == 0:
                return None  # A sum that starts from the number 0.
            shift = self._per_channel(given, node, one)
            sign = SUMS[node.target] if place == 1 else 1
            return one.scaled(torch.ones_like(shift), shift * sign)
        scale = self._per_channel(given, node, one)
        return one.scaled(1 / scale if node.target in QUOTIENTS else scale)

    def _per_channel(self, given: Any, node: Node, one: LinearMap) -> Tensor:
        """A constant as one number per channel."""
        if not isinstance(given, Node):
            return one.numbers.bias.new_full((one.groups,), float(given))
        value, rank = self._constants(given), len(shape_of(node))
        wide = (1,) * (rank - value.ndim) + tuple(value.shape)
        others = [s for axis, s in enumerate(wide) if axis != self._channel_axis(node)]
        if any(size != 1 for size in others):
            raise FoldError(f"{node.target} reads more than one number per channel")
        return value.reshape(-1).expand(one.groups)

    def identity(self, node: Node) -> LinearMap:
        """The map that changes nothing of a value like that of a node."""
        channels = node.meta["val"].shape[self._channel_axis(node)]
        if not isinstance(channels, int):
            raise FoldError("the number of channels is free")
        device = self._constants.device or node.meta["val"].device
        like = torch.empty(0, dtype=torch.float64, device=device)
        return pointwise(channels, self._axes, like)

    def _channel_axis(self, node: Node) -> int:
        rank = len(shape_of(node))
        if self._axes and rank != self._axes + 2:
            raise FoldError(f"a value of {rank} axes stands beside a convolution of {self._axes}")
        return 1 if self._axes else rank - 1
