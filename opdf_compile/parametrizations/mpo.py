"""The matrix product operator with full bonds, the parametrization of OPDF (arXiv 2411.06448).

compose: (T_1, .., T_n), T_k (d_{k-1}, i_k, j_k, d_k)  ->  W (prod i_k, prod j_k)  ->  spec.shape
decompose: its right inverse, one float64 factorisation (see `tensor.decomposition`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from opdf_compile.errors import FoldError, InputError, PlanError
from opdf_compile.parametrizations import mpo_spec
from opdf_compile.parametrizations.base import Parametrization, TensorShapes
from opdf_compile.parametrizations.matrix_spec import WeightForm, checked_matrix
from opdf_compile.parametrizations.mpo_spec import MpoSpec
from opdf_compile.parametrizations.registry import register
from opdf_compile.parametrizations.request import Option
from opdf_compile.tensor import (
    Chain,
    Cost,
    Modes,
    balanced_modes,
    chain_cost,
    chain_modes,
    chain_splits,
    compose,
    decompose,
)

# The paper's range of cores.
_CORES = range(2, 11)

# A choice beyond the paper's shapes, or below them, adds at least this share of the weight's own
# parameters; so many lie at equal ratios between the smallest and the largest.
_LEAST_ADDED = 0.02
_FILL = 31


@dataclass(frozen=True)
class Mpo(Parametrization[MpoSpec]):
    """The MPO."""

    name: str = "mpo"
    summary: ClassVar[str] = "chain of n cores over modes"
    adds: ClassVar[str] = "(n - 1) D^2"
    source: ClassVar[str] = "OPDF, arXiv 2411.06448"
    spec_type: type[MpoSpec] = MpoSpec
    multilinear: bool = True
    options: ClassVar[Mapping[str, Option]] = MappingProxyType(
        {"cores": Option(int, 3, "cores per weight, 2 to 64")}
    )

    def decompose(
        self, weight: Tensor, spec: MpoSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """The cores of a weight; see `tensor.decompose` for accuracy and signs."""
        return decompose(checked_matrix(weight, spec), spec.chain, device=device)

    def compose(self, tensors: Sequence[Tensor], spec: MpoSpec) -> Tensor:
        """The weight, computed in the cores' dtype and cast once to `spec.dtype`."""
        matrix = compose(tensors, transposed=spec.transposed)
        dtype: torch.dtype = getattr(torch, spec.dtype)
        return matrix.reshape(spec.shape).to(dtype)

    def shapes(self, spec: MpoSpec) -> TensorShapes:
        """(left bond, out mode, in mode, right bond) of every core."""
        return spec.chain.core_shapes

    def cost(self, spec: MpoSpec) -> Cost:
        """Exact cost of composing the weight once."""
        return chain_cost(spec.chain)

    def propose(self, form: WeightForm, *, cores: int, **options: Any) -> MpoSpec:
        """The chain family with this many cores: the paper's shapes.

        Raises:
            PlanError: The number of cores is not 2 to 64.
        """
        with _naming(form):
            modes = chain_modes(form.rows, form.cols, cores, kernel=form.kernel)
        return MpoSpec.of(form, out_modes=modes[0], in_modes=modes[1], **options)

    def candidates(self, form: WeightForm, **options: Any) -> tuple[MpoSpec, ...]:
        """At most 40 specs, strictly increasing in added parameters.

        The paper's shapes with 2 to 10 cores are always among them; other divisor splits and the
        balanced family fill the gaps, at about equal ratios of added parameters.
        """
        with _naming(form):
            chains = _candidate_chains(form.rows, form.cols, form.kernel)
        return tuple(
            MpoSpec.of(form, out_modes=out, in_modes=inner, **options) for out, inner in chains
        )

    def lighter(self, form: WeightForm, *, cores: int) -> tuple[MpoSpec, ...]:
        """The chain family of 2 to `cores` cores at every bond that adds 2 % of the weight."""
        with _naming(form):
            splits = chain_splits(form.rows, form.cols, kernel=form.kernel)
        bonds = {split.bond: split for split in reversed(splits)}
        chains = (split.modes(n) for n in range(2, cores + 1) for split in bonds.values())
        specs = (MpoSpec.of(form, out_modes=out, in_modes=inner) for out, inner in chains)
        least = _LEAST_ADDED * form.rows * form.cols
        return tuple(spec for spec in specs if spec.chain.added >= least)

    def spec_to_json(self, spec: MpoSpec) -> dict[str, object]:
        """The spec as JSON values; see `mpo_spec.spec_to_json`."""
        return mpo_spec.spec_to_json(spec)

    def spec_from_json(self, data: Mapping[str, object]) -> MpoSpec:
        """The spec of JSON values; see `mpo_spec.spec_from_json`."""
        return mpo_spec.spec_from_json(data)

    def spec_of(self, shapes: TensorShapes, form: WeightForm) -> MpoSpec:
        """The modes of cores.

        Raises:
            FoldError: They are no cores, or their bonds are not full.
        """
        found = [list(shape) for shape in shapes]
        if any(len(shape) != 4 for shape in shapes):
            raise FoldError(f"cores have 4 axes (left, out, in, right), found shapes {found}")
        out_modes, in_modes = tuple(s[1] for s in shapes), tuple(s[2] for s in shapes)
        spec = MpoSpec.of(form, out_modes=out_modes, in_modes=in_modes)
        if shapes != spec.chain.core_shapes:
            wanted = [list(shape) for shape in spec.chain.core_shapes]
            raise FoldError(f"cores of shapes {found} were found, full bonds want {wanted}")
        return spec


@contextmanager
def _naming(form: WeightForm) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise PlanError(f"no MPO for a weight of shape {list(form.shape)}: {error}") from error


@lru_cache(maxsize=1024)
def _candidate_chains(rows: int, cols: int, kernel: int) -> tuple[tuple[Modes, Modes], ...]:
    """Modes of the candidates by added parameters: the paper's, and others in the gaps."""
    kept = {}
    for cores in _CORES:
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
    for cores in _CORES:
        for bond, split in bonds.items():
            chains.setdefault((cores - 1) * bond**2, split.modes(cores))
        balanced = balanced_modes(rows, cols, cores, kernel=kernel)
        chains.setdefault(Chain(*balanced).added, balanced)
    return chains


register(Mpo())
