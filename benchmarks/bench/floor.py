"""The floor: what over-parameterisation must cost in an optimizer step, whoever implements it.

    floor = (plain step + compose + optimizer's pass) / plain step

    compose          = FLOPs of compose, forward and backward (exact, from the plan) / GEMM rate
    GEMM rate        = FLOPs of the chain's own products / time of torch.mm on their shapes
    optimizer's pass = the wrapped optimizer stepping tensors of the cores' shapes
                     - the same optimizer stepping tensors of the weights' shapes, 0 at least

Each is measured in every round of the race that measures the steps, so that a machine that slows
down does not show up as a better or a worse program. What the floor leaves out is what an
implementation can save: copies, permutations, allocations, checks, Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.clock import Clock, repeats, timed
from opdf_compile.errors import InternalError
from opdf_compile.parametrizations.mpo_spec import MpoSpec
from opdf_compile.parametrizations.registry import registered
from opdf_compile.planning.plans import Plan
from opdf_compile.tensor.composition import contraction_order


class Product(NamedTuple):
    """One matrix product, (rows x inner) by (inner x cols).

    Attributes:
        rows: Of the result.
        inner: The summed dimension.
        cols: Of the result.
        layout: "nn" in compose; "nt" for dA = G B^T and "tn" for dB = A^T G in its backward.
    """

    rows: int
    inner: int
    cols: int
    layout: str

    @property
    def flops(self) -> int:
        """FLOPs of the product."""
        return 2 * self.rows * self.inner * self.cols


def compose_products(plan: Plan) -> Counter[Product]:
    """All products of composing a plan's weights once, forward and backward.

    Raises:
        InternalError: Their FLOPs are not the plan's own count.
    """
    products: Counter[Product] = Counter()
    for entry in plan.entries:
        if not isinstance(entry.spec, MpoSpec):
            raise InternalError(f"the floor knows MPO chains, and {entry.key!r} is none")
        chain = entry.spec.chain
        for step in contraction_order(chain.bonds, chain.products):
            products[Product(step.left, step.bond, step.right, "nn")] += 1
            products[Product(step.left, step.right, step.bond, "nt")] += 1
            products[Product(step.bond, step.left, step.right, "tn")] += 1
    found, wanted = flops(products), plan.cost.step_flops
    if found != wanted:
        raise InternalError(f"the products have {found} FLOPs, the plan counts {wanted}")
    return products


def flops(products: Mapping[Product, int]) -> int:
    """FLOPs of a multiset of products."""
    return sum(product.flops * count for product, count in products.items())


class GemmRate:
    """Measures the device's rate on the products of a plan."""

    def __init__(self, products: Mapping[Product, int], clock: Clock) -> None:
        """Allocate operands and results of each distinct product, and warm up."""
        self._clock, self.counts = clock, dict(products)
        self._operands = {product: _operands(product, clock.device) for product in products}
        self._repeats: dict[Product, int] = {}
        for product in products:
            self._run(product, 1)
            single = timed(lambda p=product: self._run(p, 1), clock)  # type: ignore[misc]
            self._repeats[product] = repeats(single)

    def seconds(self) -> float:
        """Seconds of all products at the rate measured now."""
        total = 0.0
        for product, count in self.counts.items():
            times = self._repeats[product]
            took = timed(lambda p=product, n=times: self._run(p, n), self._clock)  # type: ignore[misc]
            total += count * took / times
        return total

    def _run(self, product: Product, times: int) -> None:
        left, right, result = self._operands[product]
        for _ in range(times):
            torch.mm(left, right, out=result)


class OptimizerPass:
    """Times an optimizer that steps tensors of given shapes."""

    def __init__(
        self,
        shapes: Iterable[Sequence[int]],
        optimizer: type[torch.optim.Optimizer],
        options: Mapping[str, object],
        clock: Clock,
    ) -> None:
        """Make tensors and gradients, and step once so that the states exist."""
        tensors = [torch.randn(*shape, device=clock.device, requires_grad=True) for shape in shapes]
        for tensor in tensors:
            tensor.grad = torch.randn_like(tensor)
        make: type = optimizer
        self._optimizer: torch.optim.Optimizer = make(tensors, **options)
        self._clock = clock
        self.step()
        self._repeats = repeats(timed(self.step, clock))

    def step(self) -> None:
        """One pass over all tensors."""
        self._optimizer.step()

    def seconds(self) -> float:
        """Seconds of one pass, now."""
        return timed(self._run, self._clock) / self._repeats

    def _run(self) -> None:
        for _ in range(self._repeats):
            self.step()


def core_shapes(plan: Plan) -> list[tuple[int, ...]]:
    """Shapes of all cores of a plan."""
    return [
        shape
        for entry in plan.entries
        for shape in registered(entry.parametrization).shapes(entry.spec)
    ]


def weight_shapes(plan: Plan) -> list[tuple[int, ...]]:
    """Shapes of all weights of a plan."""
    return [entry.spec.shape for entry in plan.entries]


def floor_ratio(plain: float, compose: float, cores_pass: float, weights_pass: float) -> float:
    """The floor of one round, from seconds.

    Args:
        plain: A step of the plain student, all its micro-batches included.
        compose: FLOPs of compose over the GEMM rate.
        cores_pass: The optimizer's pass over the cores.
        weights_pass: The optimizer's pass over the weights, which the plain step contains.
    """
    # More entries take no less time; where the clock says otherwise it has met a neighbour.
    extra = max(0.0, cores_pass - weights_pass)
    return (plain + compose + extra) / plain


def _operands(product: Product, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    left = torch.randn(product.rows, product.inner, device=device)
    right = torch.randn(product.inner, product.cols, device=device)
    result = torch.empty(product.rows, product.cols, device=device)
    # A transposed operand is a view of a row-major tensor, as autograd has it.
    if product.layout == "tn":
        left = left.mT.contiguous().mT
    if product.layout == "nt":
        right = right.mT.contiguous().mT
    return left, right, result
