"""Magnitude and direction: gains of rows and columns around a matrix whose norm is held.

    W = diag(g_r) V diag(g_c),    g = softplus(s)        r of the rows, c of the columns
    after each step of the optimizer    V <- n V / |V|,  n = |V| at the start (Frobenius)
    start: g_r = 1, g_c = 1, V = W                       exact, bit for bit

arXiv 2606.25971. The direction V can only turn, so how far a step turns it is set by the learning
rate alone, while the gains find the magnitudes:

    dL/dV = g_r G g_c,    dL/dg_r = rowsum(V G g_c),    dL/dg_c likewise,    G = dL/dW

What is stored of a gain is t = s - ln(e - 1), which an optimizer cannot tell from s (the gradient
is the same), so that the start is 0 and the gain there exactly 1 in every dtype:

    softplus(t + ln(e - 1)) = ln(1 + (e - 1) e^t) = 1 + ln(1 + (1 - 1/e) (e^t - 1))

Decay of the weight is no part of it: that of V is undone by the norm, and one of the gains would
pull learned magnitudes back. The n of a matrix of zeros is 0, and so is one beyond the dtype; then
no norm is held. The gains stand outside a clip norm, as those of `gains`, and the matrix is the
same as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from opdf_compile.parametrizations.base import ScalingTerm, TensorShapes
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm, checked_matrix
from opdf_compile.parametrizations.registry import register
from opdf_compile.parametrizations.scaled import Scaled, norm_by_blocks
from opdf_compile.tensor import Cost

# (1 - 1/e) of the formula above.
_SLOPE = -math.expm1(-1.0)


class Md(Scaled[MatrixSpec]):
    """W = diag(g_r) V diag(g_c), |V| held; the tensors are t_r, t_c, V and n, in this order."""

    name = "md"
    summary = "g_i V_ij h_j, gains softplus(s), the norm of V held"
    adds = "rows + cols + 1"
    source = "magnitude and direction, arXiv 2606.25971"
    spec_type = MatrixSpec
    usual_cores = 4
    retracts = True

    def decompose(
        self, weight: Tensor, spec: MatrixSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """Zeros, zeros, a copy of the weight, and its norm."""
        checked_matrix(weight, spec)
        matrix = weight.detach().reshape(spec.stored).to(self.core_dtype(spec))
        # A copy of its own, contiguous whatever the weight's layout was.
        matrix = matrix.clone(memory_format=torch.contiguous_format)
        rows, columns, _matrix, _norm = self.shapes(spec)
        norm = norm_by_blocks(matrix).to(matrix).nan_to_num(posinf=0.0)
        return matrix.new_zeros(rows), matrix.new_zeros(columns), matrix, norm

    def compose(self, tensors: Sequence[Tensor], spec: MatrixSpec) -> Tensor:
        """The weight: two products, entry by entry."""
        t_r, t_c, matrix, norm = tensors
        # A graph has the tensors that it reads: n would be lost to files and to the hoisted form.
        return super().compose((t_r + 0 * norm, t_c, matrix), spec)

    def gain(self, tensor: Tensor) -> Tensor:
        """softplus(t + ln(e - 1)), exactly 1 where t is 0."""
        return 1 + torch.log1p(_SLOPE * torch.expm1(tensor))

    def slope(self, gain: Tensor) -> Tensor:
        """That of softplus where it is g: 1 - e^-g."""
        return -torch.expm1(-gain)

    def shapes(self, spec: MatrixSpec) -> TensorShapes:
        """(rows, 1), (1, cols) and (rows, cols), of the matrix as it is stored, and (1,)."""
        rows, cols = spec.stored
        return (rows, 1), (1, cols), (rows, cols), (1,)

    def untrained(self, spec: MatrixSpec) -> tuple[int, ...]:
        """The norm."""
        return (3,)

    def retract(self, tensors: Sequence[Tensor], spec: MatrixSpec) -> None:
        """V <- n V / |V|; a matrix of zeros, and one whose n is 0, stay."""
        self.retract_all([(tensors, spec)])

    def retract_all(self, many: Sequence[tuple[Sequence[Tensor], MatrixSpec]]) -> None:
        """`retract`; of small matrices the calls, not the numbers, take the time."""
        alike: dict[tuple[torch.dtype, torch.device], list[Sequence[Tensor]]] = {}
        for tensors, _spec in many:
            alike.setdefault((tensors[2].dtype, tensors[2].device), []).append(tensors)
        for (dtype, _device), group in alike.items():
            matrices = [matrix for _t_r, _t_c, matrix, _norm in group]
            norms = torch.cat([norm for _t_r, _t_c, _matrix, norm in group])
            found = torch.cat([norm_by_blocks(matrix) for matrix in matrices])
            held = (found > 0) & (norms > 0)
            # No branch on a value, which would wait for a device.
            scales = torch.where(held, norms / found, 1.0).to(dtype)
            torch._foreach_mul_(matrices, scales.unbind())

    def terms(self, spec: MatrixSpec) -> tuple[ScalingTerm, ...]:
        """None: it takes no decay of the weight."""
        return ()

    def describe(self, spec: MatrixSpec) -> str:
        """The numbers of gains: ``48 x 30 gains, norm held``."""
        rows, cols = spec.stored
        return f"{rows} x {cols} gains, norm held"

    def cost(self, spec: MatrixSpec) -> Cost:
        """Those of `gains`, and a norm and a product to hold it."""
        entries, added = math.prod(spec.shape), sum(spec.stored)
        return Cost(
            parameters=entries + added,
            added=added,
            forward_flops=5 * entries,
            backward_flops=6 * entries,
            largest_intermediate=entries,
            untrained=1,
        )

    def propose(self, form: WeightForm, *, cores: int = 4, **options: Any) -> MatrixSpec:
        """The only spec.

        Raises:
            PlanError: Another number of cores is wanted.
        """
        self.require_usual(cores, "4 tensors", "there is one form")
        return MatrixSpec.of(form, **options)


register(Md())
