"""A central core that the blocks of one weight share, with auxiliary cores of their own.

    W = [W_1; ..; W_B]         W_b = A_b C B_b       C (D, D) the same for every block

The rows are cut into B equal blocks: the matrices of a stack (experts), or the parts of a packed
projection (q, k, v). Every block is an MPO of three cores with modes (a, 1, b) x (c, 1, d), and D
is its full bond. A chain of these shapes starts with the identity in the middle (see
`tensor.decomposition`), so that one C = I fits all blocks and nothing is lost; training moves it
for all of them together, which is what ties them.

arXiv 2303.16753 shares the central core over the *layers* of a network. That is not offered here: a
core belongs to one weight, which can be absorbed, folded, moved to another rank or taken out of a
batch by itself, and none of these could be done to a weight whose core others need. Within one
weight all of it holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import FoldError, InputError, PlanError
from opdf_compile.parametrizations import matrix_spec
from opdf_compile.parametrizations.base import Parametrization, TensorShapes
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm, as_weight
from opdf_compile.parametrizations.registry import register
from opdf_compile.parametrizations.request import Option
from opdf_compile.tensor import Chain, Cost, chain_modes, decompose, divisors

# A matrix that is no stack is cut into so many blocks, or the next smaller number that divides it.
USUAL_BLOCKS = 4
_MOST_BLOCKS = 16


@dataclass(frozen=True)
class SharedSpec(MatrixSpec):
    """Blocks of rows, and the modes of one block.

    Attributes:
        blocks: B, a divisor of the rows.
        out_modes: (a, b), whose product is the rows of a block.
        in_modes: (c, d), whose product is the columns.

    Raises:
        PlanError: The numbers do not multiply to the weight's sizes.
    """

    blocks: int = 1
    out_modes: tuple[int, ...] = ()
    in_modes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what does not fit the weight."""
        super().__post_init__()
        if type(self.blocks) is not int or self.blocks < 1 or self.rows % self.blocks:
            raise PlanError(
                f"blocks is {self.blocks!r}, wanted a divisor of the {self.rows} rows of a weight "
                f"of shape {list(self.shape)}"
            )
        try:
            chain = self.chain
        except InputError as error:
            raise PlanError(f"the blocks' modes are no chain: {error}") from error
        wanted = (self.rows // self.blocks, self.cols)
        if (chain.rows, chain.cols) != wanted or chain.cores != 2:
            raise PlanError(
                f"out_modes {list(self.out_modes)} and in_modes {list(self.in_modes)} make a block "
                f"of {chain.rows} x {chain.cols}, wanted two modes each for {wanted[0]} x "
                f"{wanted[1]}"
            )

    @cached_property
    def chain(self) -> Chain:
        """One block without its central core."""
        return Chain(self.out_modes, self.in_modes)

    @property
    def bond(self) -> int:
        """D, the size of the central core."""
        return self.chain.bonds[1]


class Shared(Parametrization[SharedSpec]):
    """W_b = A_b C B_b, three tensors: all A_b, C, all B_b."""

    name = "shared"
    summary = "blocks of rows A_b C B_b, one C for all"
    adds = "B (ac + bd) D + D^2 less the weight"
    source = "arXiv 2303.16753"
    spec_type = SharedSpec
    multilinear = True
    options = MappingProxyType(
        {
            "blocks": Option(
                int, USUAL_BLOCKS, "blocks of a matrix that is no stack, or the next divisor below"
            )
        }
    )

    def decompose(
        self, weight: Tensor, spec: SharedSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """Every block by one float64 factorisation, and the identity."""
        blocks = matrix_spec.checked_matrix(weight, spec).reshape(spec.blocks, -1, spec.cols)
        pairs = [decompose(block, spec.chain, device=device) for block in blocks]
        left, right = (torch.stack(cores) for cores in zip(*pairs, strict=True))
        shapes = self.shapes(spec)
        central = torch.eye(spec.bond, dtype=left.dtype, device=left.device)
        return left.reshape(shapes[0]), central, right.reshape(shapes[2])

    def compose(self, tensors: Sequence[Tensor], spec: SharedSpec) -> Tensor:
        """The weight: the central core goes to the side that is smaller, then a batched product."""
        left, central, right = tensors
        ((a, b), (c, d)), bond = (spec.out_modes, spec.in_modes), spec.bond
        left = left.reshape(spec.blocks, a * c, bond)
        right = right.reshape(spec.blocks, bond, b * d)
        if a * c <= b * d:
            left = left @ central
        else:
            right = central @ right
        blocks = (left @ right).reshape(spec.blocks, a, c, b, d).permute(0, 1, 3, 2, 4)
        return as_weight(blocks.reshape(spec.rows, spec.cols), spec)

    def shapes(self, spec: SharedSpec) -> TensorShapes:
        """(B, a, c, D), (D, D) and (B, D, b, d)."""
        (a, b), (c, d), bond = spec.out_modes, spec.in_modes, spec.bond
        return (spec.blocks, a, c, bond), (bond, bond), (spec.blocks, bond, b, d)

    def describe(self, spec: SharedSpec) -> str:
        """Blocks and modes: ``4 x [8,6]x[6,5]``."""
        out_modes, in_modes = (",".join(map(str, m)) for m in (spec.out_modes, spec.in_modes))
        return f"{spec.blocks} x [{out_modes}]x[{in_modes}]"

    def cost(self, spec: SharedSpec) -> Cost:
        """Exact cost of composing the weight once."""
        (a, b), (c, d), bond = spec.out_modes, spec.in_modes, spec.bond
        side = min(a * c, b * d)
        forward = 2 * spec.blocks * (side * bond**2 + a * c * bond * b * d)
        parameters = sum(math.prod(shape) for shape in self.shapes(spec))
        entries = math.prod(spec.shape)
        return Cost(
            parameters=parameters,
            added=parameters - entries,
            forward_flops=forward,
            backward_flops=2 * forward,
            largest_intermediate=max(entries, spec.blocks * side * bond),
            again_flops=2 * spec.blocks * side * bond**2,
        )

    def propose(self, form: WeightForm, *, cores: int = 3, **options: Any) -> SharedSpec:
        """A block for each matrix of a stack; otherwise four, or as many as divide the rows.

        Raises:
            PlanError: Another number of cores is wanted, or less than one block.
        """
        self.require_usual(cores, "3 cores", "or take the parametrization 'mpo' for other chains")
        most = options.get("blocks", USUAL_BLOCKS)
        if most < 1:
            raise PlanError(f"the option blocks of shared is {most}, wanted 1 or more; 4 is usual")
        cuts = [count for count in divisors(form.rows) if count <= most]
        stacked = _stacked(form)
        return _cut(form, stacked if stacked > 1 else cuts[-1])

    def candidates(self, form: WeightForm, **options: Any) -> tuple[SharedSpec, ...]:
        """One spec for each number of blocks up to 16, and that of the stack."""
        if "blocks" in options:
            return super().candidates(form, **options)
        counts = [n for n in divisors(form.rows) if n <= _MOST_BLOCKS or n == _stacked(form)]
        # Of equal costs the usual one stays.
        specs = [*(_cut(form, count) for count in counts), self.propose(form)]
        by_cost = {self.cost(spec).added: spec for spec in specs}
        return tuple(by_cost[added] for added in sorted(by_cost))

    def spec_of(self, shapes: TensorShapes, form: WeightForm) -> SharedSpec:
        """Blocks and modes of the left and the right cores.

        Raises:
            FoldError: They are no such tensors.
        """
        if [len(shape) for shape in shapes] != [4, 2, 4]:
            raise FoldError(f"tensors of 4, 2 and 4 axes are wanted, found shapes {list(shapes)}")
        (blocks, a, c, _), _, (_, _, b, d) = shapes
        return SharedSpec.of(form, blocks=blocks, out_modes=(a, b), in_modes=(c, d))


def _stacked(form: WeightForm) -> int:
    """How many matrices a stack has; 1 of what is none."""
    return math.prod(form.shape[: form.row_axes - 1])


def _cut(form: WeightForm, blocks: int) -> SharedSpec:
    """The paper's modes for every block."""
    out_modes, in_modes = chain_modes(form.rows // blocks, form.cols, 2, kernel=form.kernel)
    return SharedSpec.of(form, blocks=blocks, out_modes=out_modes, in_modes=in_modes)


register(Shared())
