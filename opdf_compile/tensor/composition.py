"""Compose: multiply the cores of an MPO out to its matrix, in the cheapest order.

A segment of cores l..m is kept as a tensor (d_{l-1}, P, d_m), with P the product of the modes
i_l j_l .. i_m j_m, which stay interleaved. Two neighbouring segments meet in one matrix product,

    (d_{l-1} P_left, d_m) @ (d_m, P_right d_r)     at   d_{l-1} P_left d_m P_right d_r

multiply-adds. The order is the matrix-chain problem with open modes; the dynamic programme over
intervals below is exact (n <= 64, n^3 / 6 steps, cached). At the end ONE permute separates the out
modes from the in modes.

It is the optimum of forward and backward together. Every core is trained, so each factor of each
product needs its gradient. Of C = A B with A (m, k) and B (k, n) the backward makes dA = dC B^T and
dB = A^T dC, two products of the same m k n multiply-adds. So whatever the order, backward costs
exactly 2 and a step exactly 3 times the forward, and the cheapest forward is the cheapest step.
Nor would products of several orders side by side be fewer: the tests try every set of products that
makes a weight of three cores and all its gradients.

Of orders of equal cost the one is taken for which autograd keeps least: it saves the factors of
every product. Cores are there anyway, so what counts is the results of all products but the last.

Only reshape, matmul and permute act on tensors and no python looks at values, so that make_fx,
torch.export, torch.compile and autograd take it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from math import prod
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from opdf_compile.errors import InputError

if TYPE_CHECKING:
    # jaxtyping states shapes; only the tests, which execute them, need it installed.
    from jaxtyping import Float


class Contraction(NamedTuple):
    """One matrix product of neighbouring segments: (left * bond) by (bond * right).

    Attributes:
        position: Place of the left segment in the list of segments that remain.
        left: Rows, d_{l-1} times the left segment's modes.
        bond: The summed dimension.
        right: Columns, the right segment's modes times d_r.
    """

    position: int
    left: int
    bond: int
    right: int

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the product."""
        return self.left * self.bond * self.right

    @property
    def result(self) -> int:
        """Entries of the product."""
        return self.left * self.right


class ContractionOrder(tuple[Contraction, ...]):
    """The contractions of one chain, first to last; prints one line per product."""

    __slots__ = ()

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all products."""
        return sum(step.multiply_adds for step in self)

    @property
    def again(self) -> int:
        """Multiply-adds of making again what a backward needs where nothing was kept."""
        return sum(step.multiply_adds for step in self[:-1])

    @property
    def saved(self) -> int:
        """Entries that autograd keeps for the backward, beside the cores themselves."""
        return sum(step.result for step in self[:-1])

    def __str__(self) -> str:
        """One line per product: its place, its shapes, its multiply-adds."""
        return "\n".join(
            f"{s.position}@{s.position + 1}: ({s.left} x {s.bond}) ({s.bond} x {s.right})"
            f" {s.multiply_adds:,} multiply-adds"
            for s in self
        )


@lru_cache(maxsize=4096)
def contraction_order(bonds: tuple[int, ...], products: tuple[int, ...]) -> ContractionOrder:
    """The order with the fewest multiply-adds, then the fewest saved entries, then always the same.

    Args:
        bonds: d_0..d_n, n + 1 entries.
        products: i_k j_k, n entries.

    Returns:
        n - 1 contractions.
    """
    cores = len(products)
    # (multiply-adds, entries saved) of an interval; both add up, so the smallest pair is exact.
    cost: dict[tuple[int, int], tuple[int, int]] = {(k, k): (0, 0) for k in range(cores)}
    split: dict[tuple[int, int], int] = {}

    def size(first: int, last: int) -> int:
        return bonds[first] * prod(products[first : last + 1]) * bonds[last + 1]

    def price(first: int, cut: int, last: int) -> tuple[int, int]:
        parts = ((first, cut), (cut + 1, last))
        saved = sum(size(*part) for part in parts if part[0] < part[1])
        product = size(first, last) * bonds[cut + 1]
        left, right = (cost[part] for part in parts)
        return left[0] + right[0] + product, left[1] + right[1] + saved

    for length in range(2, cores + 1):
        for first in range(cores - length + 1):
            last = first + length - 1
            prices = [price(first, cut, last) for cut in range(first, last)]
            cost[first, last] = min(prices)
            split[first, last] = first + prices.index(cost[first, last])
    return ContractionOrder(_unroll(bonds, products, split))


def compose(
    cores: Sequence[Float[Tensor, "_left _out _in _right"]], *, transposed: bool = False
) -> Float[Tensor, "_rows _cols"]:
    """Multiply the cores out, in their own dtype.

    Args:
        cores: T_k of shape (d_{k-1}, i_k, j_k, d_k), with d_0 = d_n = 1.
        transposed: Return the transpose (in features x out features), at no extra cost.

    Returns:
        The matrix of shape (prod i_k, prod j_k), contiguous.

    Raises:
        InputError: The cores do not form a chain.
    """
    recipe = _constant_recipe(tuple(tuple(core.shape) for core in cores), transposed)
    segments = list(cores)
    for step in recipe.order:
        left, right = segments[step.position : step.position + 2]
        segments[step.position : step.position + 2] = [
            left.reshape(step.left, step.bond) @ right.reshape(step.bond, step.right)
        ]
    separated = segments[0].reshape(recipe.interleaved).permute(recipe.axes)
    # Of one mode of each kind the transpose would stay a view.
    return separated.reshape(recipe.result).contiguous()


class _Recipe(NamedTuple):
    """All that compose derives from shapes alone.

    Attributes:
        order: The matrix products.
        interleaved: Sizes (i1, j1, i2, j2, ..). Modes of 1 are left out and neighbours of one kind
            are merged, which keeps the rank small (torch allows 64 axes) and the copy fast.
        axes: The permutation that separates out modes from in modes.
        result: Sizes of the matrix.
    """

    order: ContractionOrder
    interleaved: tuple[int, ...]
    axes: tuple[int, ...]
    result: tuple[int, int]


@lru_cache(maxsize=4096)
def _recipe(shapes: tuple[tuple[int, ...], ...], transposed: bool) -> _Recipe:
    _require_chain(shapes)
    modes = [size for shape in shapes for size in shape[1:3]]
    kept = [(place % 2, size) for place, size in enumerate(modes) if size > 1]
    merged = [(kind, prod(size for _, size in run)) for kind, run in groupby(kept, itemgetter(0))]
    first = 1 if transposed else 0
    axes = [k for kind in (first, 1 - first) for k, axis in enumerate(merged) if axis[0] == kind]
    sizes = prod(modes[0::2]), prod(modes[1::2])
    return _Recipe(
        order=contraction_order(
            (*(shape[0] for shape in shapes), 1), tuple(shape[1] * shape[2] for shape in shapes)
        ),
        interleaved=tuple(size for _, size in merged),
        axes=tuple(axes),
        result=(sizes[first], sizes[1 - first]),
    )


def _constant_recipe(shapes: tuple[tuple[int, ...], ...], transposed: bool) -> _Recipe:
    return _recipe(shapes, transposed)


# What torch.compiler.assume_constant_result sets; calling it would import torch._dynamo, a second.
# Without it dynamo warns of the cache and traces the search for the order step by step.
_constant_recipe._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _unroll(
    bonds: tuple[int, ...], products: tuple[int, ...], split: dict[tuple[int, int], int]
) -> Iterable[Contraction]:
    """The contractions of the best tree, leaves first, by place in the shrinking list."""
    steps: list[Contraction] = []

    def visit(first: int, last: int, place: int) -> None:
        if first == last:
            return
        cut = split[first, last]
        visit(first, cut, place)
        visit(cut + 1, last, place + 1)
        left = bonds[first] * prod(products[first : cut + 1])
        right = prod(products[cut + 1 : last + 1]) * bonds[last + 1]
        steps.append(Contraction(place, left, bonds[cut + 1], right))

    visit(0, len(products) - 1, 0)
    return steps


def _require_chain(shapes: Sequence[tuple[int, ...]]) -> None:
    if not shapes or any(len(shape) != 4 for shape in shapes):
        raise InputError(f"cores must have 4 axes (left, out, in, right), found shapes {shapes}")
    ends = [1, *(shape[3] for shape in shapes)]
    starts = [*(shape[0] for shape in shapes), 1]
    if ends != starts:
        raise InputError(f"neighbouring cores must share their bond, found shapes {shapes}")
