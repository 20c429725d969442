"""The singular value decomposition of the plain matrix: two factors, full inner size.

    W = U S V^T   ->   A = U S^(1/2)  (rows, r),   B = S^(1/2) V^T  (r, cols),   r = min(rows, cols)

"+SVD" in the tables of arXiv 2411.06448 is the over-parameterisation by two factors. As a chain it
has the modes (rows, 1) x (1, cols), so this is an MPO of two cores whose rearranged matrix R(W) is
W itself, and the machinery of the MPO does the work: null directions kept alive, signs fixed, one
float64 factorisation. An MPO with cores=2 factorises another arrangement of the same entries.

It adds r (rows + cols) - rows cols = r^2 parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from opdf_compile.parametrizations.base import Parametrization, TensorShapes
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm
from opdf_compile.parametrizations.mpo import Mpo
from opdf_compile.parametrizations.mpo_spec import MpoSpec
from opdf_compile.parametrizations.registry import register
from opdf_compile.tensor import Cost

_MPO = Mpo()


@dataclass(frozen=True)
class SvdSpec(MatrixSpec):
    """A weight as the product of two matrices; nothing is left to choose."""

    @property
    def inner(self) -> int:
        """Size of the axis that the factors share."""
        return min(self.rows, self.cols)

    @cached_property
    def chain(self) -> MpoSpec:
        """The same as an MPO of two cores."""
        return MpoSpec.of(self, out_modes=(self.rows, 1), in_modes=(1, self.cols))


class Svd(Parametrization[SvdSpec]):
    """W = A B; the factors are cores (1, rows, 1, r) and (r, 1, cols, 1)."""

    name = "svd"
    summary = "A B, of the plain matrix"
    adds = "min(rows, cols)^2"
    source = "OPDF, arXiv 2411.06448"
    spec_type = SvdSpec
    multilinear = True
    usual_cores = 2

    def decompose(
        self, weight: Tensor, spec: SvdSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """U S^(1/2) and S^(1/2) V^T, computed in float64 and rounded once."""
        return _MPO.decompose(weight, spec.chain, device=device)

    def compose(self, tensors: Sequence[Tensor], spec: SvdSpec) -> Tensor:
        """The weight: one product."""
        return _MPO.compose(tensors, spec.chain)

    def shapes(self, spec: SvdSpec) -> TensorShapes:
        """(1, rows, 1, r) and (r, 1, cols, 1)."""
        return _MPO.shapes(spec.chain)

    def cost(self, spec: SvdSpec) -> Cost:
        """Exact cost of composing the weight once."""
        return _MPO.cost(spec.chain)

    def describe(self, spec: SvdSpec) -> str:
        """The factors' sizes: ``48x30 30x30``."""
        return f"{spec.rows}x{spec.inner} {spec.inner}x{spec.cols}"

    def propose(self, form: WeightForm, *, cores: int = 2, **options: Any) -> SvdSpec:
        """The one spec there is.

        Raises:
            PlanError: Another number of cores is wanted.
        """
        self.require_usual(
            cores, "2 factors", "or take the parametrization 'mpo' for longer chains"
        )
        return SvdSpec.of(form, **options)


register(Svd())
