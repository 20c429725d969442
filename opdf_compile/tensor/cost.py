"""What a chain costs, as exact integers.

A matrix product of (m x k) by (k x n) takes 2 m k n FLOPs forward, and twice that backward: one
product for the gradient of each factor.
"""

from __future__ import annotations

from dataclasses import dataclass

from opdf_compile.tensor.chain import Chain
from opdf_compile.tensor.composition import contraction_order


@dataclass(frozen=True)
class Cost:
    """The cost of composing weights once, forward and backward.

    Attributes:
        parameters: Entries of the cores that are trained.
        added: `parameters` minus the entries of the weight; below 0 where most of it is frozen.
        forward_flops: FLOPs of compose.
        backward_flops: FLOPs of its backward.
        largest_intermediate: Entries of the largest tensor that compose makes, the weight included.
            Of a sum of costs it is the maximum: weights are composed one after the other.
        untrained: Entries of the cores that are kept and not trained.
        again_flops: FLOPs of the products that are made again where the backward finds none kept.
    """

    parameters: int = 0
    added: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    largest_intermediate: int = 0
    untrained: int = 0
    again_flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        """The cost of both; `sum(costs, Cost())` adds up a whole plan."""
        return Cost(
            self.parameters + other.parameters,
            self.added + other.added,
            self.forward_flops + other.forward_flops,
            self.backward_flops + other.backward_flops,
            max(self.largest_intermediate, other.largest_intermediate),
            self.untrained + other.untrained,
            self.again_flops + other.again_flops,
        )

    @property
    def step_flops(self) -> int:
        """FLOPs of one training step: forward and backward of compose."""
        return self.forward_flops + self.backward_flops


def chain_cost(chain: Chain) -> Cost:
    """The cost of a chain in the order that `compose` uses."""
    order = contraction_order(chain.bonds, chain.products)
    forward = 2 * order.multiply_adds
    return Cost(
        parameters=chain.parameters,
        added=chain.added,
        forward_flops=forward,
        backward_flops=2 * forward,
        largest_intermediate=max(chain.rows * chain.cols, *(step.result for step in order)),
        again_flops=2 * order.again,
    )
