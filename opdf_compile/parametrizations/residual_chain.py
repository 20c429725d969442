"""A chain of thin factors beside a part of the weight's own size, or alone.

    W = R + F_1 F_2 .. F_L          F_1 (rows, r),  F_2 .. F_(L-1) (r, r),  F_L (r, cols)

The matrix is the weight as it is stored: the sum does not ask which axis is called rows. Where it
starts, and what R is for, says the parametrization: `spectral`, `delta`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from opdf_compile.errors import FoldError, PlanError
from opdf_compile.parametrizations.base import Parametrization, ScalingTerm, TensorShapes
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm
from opdf_compile.tensor import MAX_CORES, Cost, compose, contraction_order

USUAL_DEPTH = 3
# So many steps from rank 1 to the full rank.
_FILL = 23


@dataclass(frozen=True)
class ChainSpec(MatrixSpec):
    """A chain; a child says what is beside it.

    Attributes:
        rank: r, at most the smaller size of the matrix.
        depth: L, the number of factors, 2 or more.

    Raises:
        PlanError: A number is out of its range.
    """

    rank: int = 1
    depth: int = USUAL_DEPTH

    def __post_init__(self) -> None:
        """Refuse what is no chain."""
        super().__post_init__()
        bounds = (("rank", self.rank, 1, min(self.stored)), ("depth", self.depth, 2, MAX_CORES - 1))
        for name, value, least, most in bounds:
            if type(value) is not int or not least <= value <= most:
                raise PlanError(
                    f"{name} is {value!r}, wanted {least} to {most} for a weight of shape "
                    f"{list(self.shape)}; leave {name} out, or give such weights a rule of their "
                    "own"
                )

    @property
    def beside(self) -> int:
        """Number of tensors beside the chain: 1 or 0."""
        return 1

    @property
    def still(self) -> bool:
        """Whether R is kept as it is."""
        return False

    @property
    def bonds(self) -> tuple[int, ...]:
        """d_0 .. d_L of the chain: the rank between factors, 1 at both ends."""
        return (1, *(self.rank,) * (self.depth - 1), 1)

    @property
    def products(self) -> tuple[int, ...]:
        """Open sizes of the chain's factors."""
        return (self.stored[0], *(1,) * (self.depth - 2), self.stored[1])


C = TypeVar("C", bound=ChainSpec)


class ResidualChain(Parametrization[C]):
    """W = R + F_1 .. F_L: what does not depend on where it starts."""

    def compose(self, tensors: Sequence[Tensor], spec: C) -> Tensor:
        """The weight: the chain multiplied out in the cheapest order, and R added."""
        matrix = product(tensors[spec.beside :], spec)
        if spec.beside:
            matrix = tensors[0] + matrix
        return matrix.reshape(spec.shape).contiguous().to(getattr(torch, spec.dtype))

    def shapes(self, spec: C) -> TensorShapes:
        """(rows, cols), (rows, r), (r, r) .., (r, cols); the first one only where there is R."""
        (rows, cols), rank = spec.stored, spec.rank
        chain = ((rows, rank), *((rank, rank),) * (spec.depth - 2), (rank, cols))
        return ((rows, cols), *chain) if spec.beside else chain

    def untrained(self, spec: C) -> tuple[int, ...]:
        """R, where it is to stay as it is."""
        return (0,) if spec.still else ()

    def terms(self, spec: C) -> tuple[ScalingTerm, ...] | None:
        """R by itself, the factors evenly; nothing scales a weight of which a part is frozen."""
        if spec.still:
            return None
        factors = range(spec.beside, spec.beside + spec.depth)
        return (*({0: 1.0},) * spec.beside, dict.fromkeys(factors, 1 / spec.depth))

    def cost(self, spec: C) -> Cost:
        """Exact cost of composing the weight once; adding R is one FLOP per entry."""
        order = contraction_order(spec.bonds, spec.products)
        entries = math.prod(spec.shape)
        frozen = entries if spec.still else 0
        parameters = sum(math.prod(shape) for shape in self.shapes(spec)) - frozen
        return Cost(
            parameters=parameters,
            added=parameters - entries,
            forward_flops=2 * order.multiply_adds + spec.beside * entries,
            backward_flops=4 * order.multiply_adds,
            largest_intermediate=max(entries, *(step.result for step in order)),
            untrained=frozen,
            again_flops=2 * order.again,
        )


def require_depth(name: str, beside: str, cores: int) -> int:
    """The number of factors of so many cores, of which one is beside the chain.

    Raises:
        PlanError: There are fewer than two factors, or more cores than any weight has.
    """
    if type(cores) is not int or not 3 <= cores <= MAX_CORES:
        raise PlanError(
            f"{name} has {beside} and 2 factors or more, found cores={cores!r}; give 3 to "
            f"{MAX_CORES}, or leave cores out"
        )
    return cores - 1


def rank_of(form: WeightForm, options: Mapping[str, Any], usual: int) -> int:
    """The rank that is asked for, else the usual one; of a smaller matrix the full one.

    A rank is asked of a whole network, whose smallest layer should not forbid it.
    """
    asked: int = options.get("rank", usual)
    return min(asked, *form.stored)


def usual_ranks(form: WeightForm, usual: int) -> list[int]:
    """Ranks from 1 to the full one at about equal ratios, and the usual one among them."""
    full = min(form.stored)
    return sorted({round(full ** (k / _FILL)) for k in range(1 + _FILL)} | {usual})


def rank_and_depth(shapes: TensorShapes, form: WeightForm) -> tuple[int, int] | None:
    """Of a chain beside a matrix of the weight's size; None of matrices that are none.

    Raises:
        FoldError: They are no matrices, or all of one square size, which a longer chain has too.
    """
    if len(shapes) < 3 or any(len(shape) != 2 for shape in shapes):
        raise FoldError(f"3 matrices or more are wanted, found {list(shapes)}")
    if set(shapes) == {form.stored}:
        raise FoldError(
            f"{len(shapes)} matrices of {' x '.join(map(str, form.stored))} may be a residual and "
            "a chain of the full rank, or a longer chain without a residual; fold the file that "
            "opdf-compile expand wrote, which has the plan"
        )
    beside = shapes[0] == form.stored and shapes[1][0] == form.stored[0]
    return (shapes[1][1], len(shapes) - 1) if beside else None


def product(chain: Sequence[Tensor], spec: ChainSpec) -> Tensor:
    """The factors multiplied out: an MPO whose outer cores have one open mode each."""
    (rows, cols), rank = spec.stored, spec.rank
    first, *middle, last = chain
    cores = [
        first.reshape(1, rows, 1, rank),
        *(factor.reshape(rank, 1, 1, rank) for factor in middle),
        last.reshape(rank, 1, cols, 1),
    ]
    return compose(cores)


def completed(
    matrix: Tensor, chain: Sequence[Tensor], spec: ChainSpec, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """What the matrix has beside the rounded chain, and the chain; copies, all of one dtype.

    The first is there also where the spec has no place for it.

    Args:
        matrix: The weight as it is stored, in float64.
        chain: The factors, in float64; some may be one tensor.
        spec: The choice made for the weight.
        dtype: What the tensors are rounded to.
    """
    rounded = [factor.to(dtype) for factor in chain]
    rest = matrix - product([factor.double() for factor in rounded], spec)
    made = (rest.to(dtype), *rounded)
    return tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in made)
