"""The singular value decomposition of the plain matrix: two factors, full inner size.

    W = U S V^T   ->   A = U S^(1/2)  (rows, r),   B = S^(1/2) V^T  (r, cols),   r = min(rows, cols)

"+SVD" in the tables of arXiv 2411.06448 is the over-parameterisation by two factors. As a chain it
has the modes (rows, 1) x (1, cols), so this is an MPO of two cores whose rearranged matrix R(W) is
W itself, and the machinery of the MPO does the work: null directions kept alive, signs fixed, one
float64 factorisation. An MPO with cores=2 factorises another arrangement of the same entries.

It adds r (rows + cols) - rows cols = r^2 parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from opdf_compile.errors import FoldError, PlanError
from opdf_compile.parametrizations import matrix_spec
from opdf_compile.parametrizations.matrix_spec import MatrixSpec
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
        return MpoSpec(
            self.shape, self.dtype, self.transposed, (self.rows, 1), (1, self.cols), self.row_axes
        )


@dataclass(frozen=True)
class Svd:
    """W = A B as a `Parametrization`; the factors are cores (1, rows, 1, r) and (r, 1, cols, 1)."""

    name: Final[str] = "svd"
    spec_type: Final[type[SvdSpec]] = SvdSpec
    multilinear: Final[bool] = True
    usual_cores: Final[int] = 2

    def decompose(
        self, weight: Tensor, spec: SvdSpec, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """U S^(1/2) and S^(1/2) V^T, computed in float64 and rounded once.

        Raises:
            InputError: The weight has another shape than the spec, or holds NaN or infinity.
        """
        return _MPO.decompose(weight, spec.chain, device=device)

    def compose(self, tensors: Sequence[Tensor], spec: SvdSpec) -> Tensor:
        """The weight: one product."""
        return _MPO.compose(tensors, spec.chain)

    def core_names(self, key: str, spec: SvdSpec) -> tuple[str, ...]:
        """`<key>_cores.0` and `<key>_cores.1`."""
        return _MPO.core_names(key, spec.chain)

    def shapes(self, spec: SvdSpec) -> tuple[tuple[int, ...], ...]:
        """(1, rows, 1, r) and (r, 1, cols, 1)."""
        return _MPO.shapes(spec.chain)

    def core_dtype(self, spec: SvdSpec) -> torch.dtype:
        """float32 for half weights, else the weight's own dtype."""
        return _MPO.core_dtype(spec.chain)

    def cost(self, spec: SvdSpec) -> Cost:
        """Exact cost of composing the weight once."""
        return _MPO.cost(spec.chain)

    def describe(self, spec: SvdSpec) -> str:
        """The factors' sizes: ``48x30 30x30``."""
        return f"{spec.rows}x{spec.inner} {spec.inner}x{spec.cols}"

    def propose(
        self,
        weight_shape: Sequence[int],
        *,
        cores: int = 2,
        dtype: str = "float32",
        transposed: bool = False,
        kernel: int = 1,
        row_axes: int = 1,
    ) -> SvdSpec:
        """The one spec there is.

        Raises:
            PlanError: The weight has fewer than two axes, or another number of cores is wanted.
        """
        if cores != 2:
            raise PlanError(
                f"svd has 2 factors, found cores={cores!r}; leave cores out, or take the "
                "parametrization 'mpo' for longer chains"
            )
        return SvdSpec(tuple(weight_shape), dtype, transposed, row_axes)

    def candidates(
        self,
        weight_shape: Sequence[int],
        *,
        dtype: str = "float32",
        transposed: bool = False,
        kernel: int = 1,
        row_axes: int = 1,
    ) -> tuple[SvdSpec, ...]:
        """The one spec there is."""
        return (SvdSpec(tuple(weight_shape), dtype, transposed, row_axes),)

    def spec_to_json(self, spec: SvdSpec) -> dict[str, object]:
        """The spec as JSON values."""
        return matrix_spec.to_json(spec)

    def spec_from_json(self, data: Mapping[str, object]) -> SvdSpec:
        """The spec of JSON values.

        Raises:
            PlanError: A key is missing or unknown, or a value does not fit.
        """
        return matrix_spec.from_json(SvdSpec, self.name, data)

    def infer(
        self,
        shapes: Sequence[Sequence[int]],
        weight_shape: Sequence[int],
        *,
        dtype: str = "float32",
        transposed: bool = False,
    ) -> SvdSpec:
        """The spec whose factors have these shapes.

        Raises:
            FoldError: They are no two factors of the weight.
        """
        found = tuple(tuple(shape) for shape in shapes)
        spec = _MPO.infer(shapes, weight_shape, dtype=dtype, transposed=transposed)
        made = SvdSpec(tuple(weight_shape), dtype, transposed, spec.row_axes)
        if self.shapes(made) != found:
            raise FoldError(
                f"cores of shapes {[list(s) for s in found]} were found, svd has "
                f"{[list(s) for s in self.shapes(made)]}"
            )
        return made


register(Svd())
