"""The matrix product operator with full bonds, the parametrization of OPDF (arXiv 2411.06448).

compose: (T_1, .., T_n), T_k (d_{k-1}, i_k, j_k, d_k)  ->  W (prod i_k, prod j_k)  ->  spec.shape
decompose: its right inverse, one float64 factorisation (see `tensor.decompose`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from opdf_compile.errors import FoldError, InputError, PlanError
from opdf_compile.parametrizations import mpo_spec
from opdf_compile.parametrizations.mpo_spec import MpoSpec, matrix_sizes
from opdf_compile.parametrizations.registry import register
from opdf_compile.tensor import (
    Chain,
    Cost,
    Modes,
    balanced_modes,
    chain_cost,
    chain_modes,
    chain_splits,
    compose,
    core_dtype,
    decompose,
)

# The paper's range of cores.
CORES = range(2, 11)

# A choice beyond the paper's shapes adds at least this share of the weight's own parameters, and
# this many of them lie at equal ratios between the smallest and the largest.
_LEAST_ADDED = 0.02
_FILL = 31


@dataclass(frozen=True)
class Mpo:
    """The MPO as a `Parametrization`."""

    name: Final[str] = "mpo"
    spec_type: Final[type[MpoSpec]] = MpoSpec
    multilinear: Final[bool] = True

    def decompose(
        self, weight: Tensor, spec: MpoSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """The cores of a weight; see `tensor.decompose.decompose` for accuracy and signs.

        Raises:
            InputError: The weight has another shape than the spec, or holds NaN or infinity.
        """
        if tuple(weight.shape) != spec.shape:
            found, wanted = list(weight.shape), list(spec.shape)
            raise InputError(f"a weight of shape {found} was found, {wanted} is wanted by its spec")
        rows = math.prod(spec.shape[: spec.row_axes])
        matrix = weight.detach().reshape(rows, -1)
        return decompose(matrix.mT if spec.transposed else matrix, spec.chain, device=device)

    def compose(self, tensors: Sequence[Tensor], spec: MpoSpec) -> Tensor:
        """The weight, computed in the cores' dtype and cast once to `spec.dtype`."""
        matrix = compose(tensors, transposed=spec.transposed)
        dtype: torch.dtype = getattr(torch, spec.dtype)
        return matrix.reshape(spec.shape).to(dtype)

    def core_names(self, key: str, spec: MpoSpec) -> tuple[str, ...]:
        """`<key>_cores.<i>`, entries of a ParameterList beside the weight."""
        return tuple(f"{key}_cores.{k}" for k in range(spec.chain.cores))

    def shapes(self, spec: MpoSpec) -> tuple[tuple[int, ...], ...]:
        """(left bond, out mode, in mode, right bond) of every core."""
        return spec.chain.core_shapes

    def core_dtype(self, spec: MpoSpec) -> torch.dtype:
        """float32 for half weights, else the weight's own dtype."""
        return core_dtype(getattr(torch, spec.dtype))

    def cost(self, spec: MpoSpec) -> Cost:
        """Exact cost of composing the weight once."""
        return chain_cost(spec.chain)

    def propose(
        self,
        weight_shape: Sequence[int],
        *,
        cores: int,
        dtype: str = "float32",
        transposed: bool = False,
        kernel: int = 1,
        row_axes: int = 1,
    ) -> MpoSpec:
        """The chain family with this many cores: the paper's shapes.

        Raises:
            PlanError: The weight has fewer than two axes, or the number of cores is not 2 to 64.
        """
        shape = tuple(weight_shape)
        rows, cols = matrix_sizes(shape, transposed=transposed, row_axes=row_axes)
        try:
            modes = chain_modes(rows, cols, cores, kernel=kernel)
        except InputError as error:
            raise PlanError(f"no MPO for a weight of shape {list(shape)}: {error}") from error
        return MpoSpec(shape, dtype, transposed, *modes, row_axes)

    def candidates(
        self,
        weight_shape: Sequence[int],
        *,
        dtype: str = "float32",
        transposed: bool = False,
        kernel: int = 1,
        row_axes: int = 1,
    ) -> tuple[MpoSpec, ...]:
        """At most 40 specs, strictly increasing in added parameters.

        The paper's shapes with 2 to 10 cores are always among them; other divisor splits and the
        balanced family fill the gaps, at about equal ratios of added parameters.
        """
        shape = tuple(weight_shape)
        rows, cols = matrix_sizes(shape, transposed=transposed, row_axes=row_axes)
        try:
            chains = _candidate_chains(rows, cols, kernel)
        except InputError as error:
            raise PlanError(f"no MPO for a weight of shape {list(shape)}: {error}") from error
        return tuple(MpoSpec(shape, dtype, transposed, *modes, row_axes) for modes in chains)

    def spec_to_json(self, spec: MpoSpec) -> dict[str, object]:
        """The spec as JSON values; see `mpo_spec.spec_to_json`."""
        return mpo_spec.spec_to_json(spec)

    def spec_from_json(self, data: Mapping[str, object]) -> MpoSpec:
        """The spec of JSON values; see `mpo_spec.spec_from_json`."""
        return mpo_spec.spec_from_json(data)

    def infer(
        self,
        shapes: Sequence[Sequence[int]],
        weight_shape: Sequence[int],
        *,
        dtype: str = "float32",
        transposed: bool = False,
    ) -> MpoSpec:
        """The spec whose cores have these shapes, for folding without a plan.

        Raises:
            FoldError: The shapes are no full-bond chain of the weight.
        """
        found = [list(shape) for shape in shapes]
        if any(len(shape) != 4 for shape in found):
            raise FoldError(f"cores have 4 axes (left, out, in, right), found shapes {found}")
        out_modes, in_modes = tuple(s[1] for s in found), tuple(s[2] for s in found)
        row_axes = _row_axes(tuple(weight_shape), math.prod(out_modes))
        try:
            spec = MpoSpec(tuple(weight_shape), dtype, transposed, out_modes, in_modes, row_axes)
        except PlanError as error:
            raise FoldError(f"cores of shapes {found} do not fit the weight: {error}") from error
        wanted = [list(shape) for shape in spec.chain.core_shapes]
        if found != wanted:
            raise FoldError(f"cores of shapes {found} were found, full bonds want {wanted}")
        return spec


def _row_axes(shape: tuple[int, ...], rows: int) -> int:
    """How many leading axes multiply to the rows; 1 where none do, which the spec then refuses."""
    fitting = (k for k in range(1, len(shape)) if math.prod(shape[:k]) == rows)
    return next(fitting, 1)


@lru_cache(maxsize=1024)
def _candidate_chains(rows: int, cols: int, kernel: int) -> tuple[tuple[Modes, Modes], ...]:
    """Modes of the candidates by added parameters: the paper's, and others in the gaps."""
    kept = {}
    for cores in CORES:
        modes = chain_modes(rows, cols, cores, kernel=kernel)
        kept[Chain(*modes).added] = modes
    others = _other_chains(rows, cols, kernel)
    most = max(kept)
    least = max(1, int(_LEAST_ADDED * rows * cols))
    ratio = (most / least) ** (1 / _FILL)
    for step in range(_FILL):
        low, high = least * ratio**step, least * ratio ** (step + 1)
        inside = [added for added in others if low <= added < high]
        if inside and not any(low <= added < high for added in kept):
            middle = math.sqrt(low * high)
            added = min(inside, key=lambda a: abs(math.log(a / middle)))
            kept[added] = others[added]
    return tuple(kept[added] for added in sorted(kept))


def _other_chains(rows: int, cols: int, kernel: int) -> dict[int, tuple[Modes, Modes]]:
    """Added parameters -> modes; of equal counts the one with the fewest cores."""
    bonds = {split.bond: split for split in reversed(chain_splits(rows, cols, kernel=kernel))}
    chains: dict[int, tuple[Modes, Modes]] = {}
    for cores in CORES:
        for bond, split in bonds.items():
            chains.setdefault((cores - 1) * bond**2, split.modes(cores))
        balanced = balanced_modes(rows, cols, cores, kernel=kernel)
        chains.setdefault(Chain(*balanced).added, balanced)
    return chains


register(Mpo())
