"""What the parametrizations of a plain matrix share: the weight's form, JSON, checks, reshapes.

A weight of shape (O, I/g, *kernel) is the matrix O x (I/g * prod kernel), a stack (E, O, I) the
matrix (E * O) x I, a linear weight stored as (I, O) its transpose: as for the MPO (see `mpo_spec`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from opdf_compile.errors import InputError, PlanError
from opdf_compile.parametrizations.mpo_spec import DTYPES, matrix_sizes
from opdf_compile.tensor import require_values


@dataclass(frozen=True)
class MatrixSpec:
    """A weight that is read as one matrix; children add their own choices.

    Attributes:
        shape: Shape of the weight, two axes or more.
        dtype: Name of the weight's dtype; tensors of half weights are float32.
        transposed: The weight is stored as (in features, out features).
        row_axes: How many leading axes of the shape are the rows.

    Raises:
        PlanError: A value is of the wrong kind.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    transposed: bool = False
    row_axes: int = 1

    def __post_init__(self) -> None:
        """Refuse what no weight can be."""
        matrix_sizes(self.shape, transposed=self.transposed, row_axes=self.row_axes)
        if self.dtype not in DTYPES:
            raise PlanError(f"dtype is {self.dtype!r}, wanted one of {', '.join(DTYPES)}")

    @property
    def rows(self) -> int:
        """Out features."""
        return matrix_sizes(self.shape, transposed=self.transposed, row_axes=self.row_axes)[0]

    @property
    def cols(self) -> int:
        """In features, times the kernel's sizes."""
        return matrix_sizes(self.shape, transposed=self.transposed, row_axes=self.row_axes)[1]

    def with_dtype(self, dtype: str) -> Self:
        """The same choice for a weight of another dtype."""
        return replace(self, dtype=dtype)


M = TypeVar("M", bound=MatrixSpec)


def checked(weight: Tensor, spec: MatrixSpec) -> Tensor:
    """The weight's values as rows x columns, without autograd.

    Raises:
        InputError: It has another shape than the spec, or holds NaN or infinity.
    """
    if tuple(weight.shape) != spec.shape:
        found, wanted = list(weight.shape), list(spec.shape)
        raise InputError(f"a weight of shape {found} was found, {wanted} is wanted by its spec")
    require_values(weight)
    matrix = weight.detach()
    return matrix.mT if spec.transposed else matrix.reshape(spec.rows, spec.cols)


def as_weight(matrix: Tensor, spec: MatrixSpec) -> Tensor:
    """A matrix of rows x columns as the weight: contiguous, cast once."""
    stored = matrix.mT if spec.transposed else matrix
    return stored.reshape(spec.shape).contiguous().to(getattr(torch, spec.dtype))


def row_axes_of(shape: Sequence[int], rows: int) -> int:
    """How many leading axes multiply to `rows`; 1 where none do, which the spec then refuses."""
    fitting = (k for k in range(1, len(shape)) if math.prod(shape[:k]) == rows)
    return next(fitting, 1)


def to_json(spec: MatrixSpec) -> dict[str, object]:
    """The spec as JSON values; one row axis is left out."""
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    if values["row_axes"] == 1:
        del values["row_axes"]
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def from_json(kind: type[M], name: str, data: Mapping[str, object]) -> M:
    """The spec of JSON values; the constructor checks them.

    Args:
        kind: The class of the spec.
        name: What to call the parametrization in messages.
        data: A JSON object; only `row_axes` may be left out.

    Raises:
        PlanError: A key is missing or unknown, or a value does not fit.
    """
    if not isinstance(data, Mapping):
        raise PlanError(f"a spec of {name} is a JSON object, found {type(data).__name__}")
    known = [field.name for field in fields(kind)]
    needed = [key for key in known if key != "row_axes"]
    missing = [key for key in needed if key not in data]
    unknown = sorted(str(key) for key in data if key not in known)
    if missing:
        raise PlanError(
            f"the spec of {name} lacks {', '.join(missing)}; it needs {', '.join(needed)}"
        )
    if unknown:
        raise PlanError(
            f"the spec of {name} has unknown keys: {', '.join(unknown)}; it has {', '.join(known)}"
        )
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
    }
    return kind(**values)
