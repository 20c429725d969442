"""A weight as a matrix: its form, and what the specs of all parametrizations share.

A weight of shape (O, I/g, *kernel) is the matrix O x (I/g * prod kernel), whatever its groups; of a
transposed convolution likewise axis 0 against the others. A linear weight stored as (I, O), the
operand of addmm, is marked `transposed` and read as its transpose, so that rows are out features.
A stack (E, O, I) is the matrix (E * O) x I: its first two axes are the rows (`row_axes`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from opdf_compile.errors import InputError, PlanError
from opdf_compile.graph import Match
from opdf_compile.tensor import require_values

_DTYPES = ("float16", "bfloat16", "float32", "float64")

# A weight with more entries than this is no weight: a plan that names one is damaged.
MAX_ENTRIES = 2**40


@dataclass(frozen=True)
class MatrixSpec:
    """A weight that is read as one matrix; children add their own choices, each with a default.

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

    _noun: ClassVar[str] = "a weight"
    # Fields that plans leave out where they have their default: older plans do not know them.
    _later: ClassVar[tuple[str, ...]] = ("row_axes",)

    def __post_init__(self) -> None:
        """Refuse what no weight can be."""
        _require_matrix(self.shape, self.transposed, self.row_axes)
        if self.dtype not in _DTYPES:
            found = f"dtype is {self.dtype!r}"
            raise PlanError(f"{found}; {self._noun} has one of {', '.join(_DTYPES)}")

    @classmethod
    def of(cls, form: MatrixSpec, **choices: Any) -> Self:
        """The spec of a weight of this form."""
        return cls(form.shape, form.dtype, form.transposed, form.row_axes, **choices)

    @property
    def stored(self) -> tuple[int, int]:
        """Sizes of the matrix as the weight is stored: its leading axes, and the others."""
        return math.prod(self.shape[: self.row_axes]), math.prod(self.shape[self.row_axes :])

    @property
    def rows(self) -> int:
        """Out features."""
        return self.stored[self.transposed]

    @property
    def cols(self) -> int:
        """In features, times the kernel's sizes."""
        return self.stored[not self.transposed]

    def with_dtype(self, dtype: str) -> Self:
        """The same choice for a weight of another dtype; "float64" is what fold composes in."""
        return replace(self, dtype=dtype)

    def matrix(self, weight: Tensor) -> Tensor:
        """A weight as rows x columns."""
        matrix = weight.reshape(self.stored)
        return matrix.mT if self.transposed else matrix


@dataclass(frozen=True)
class WeightForm(MatrixSpec):
    """What a spec is chosen for: a weight as a matrix, and the kernel that its columns hold.

    Attributes:
        kernel: Product of the kernel sizes of a convolution.
        groups: Groups of a convolution.
    """

    kernel: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        """Take a tensor's own shape too, which is no plain tuple."""
        object.__setattr__(self, "shape", tuple(self.shape))
        super().__post_init__()

    @classmethod
    def matched(cls, found: Match) -> Self:
        """The form of a match's weight."""
        matrix = (found.shape, found.dtype, found.transposed, found.row_axes)
        return cls(*matrix, kernel=found.kernel, groups=found.groups)


def checked_matrix(weight: Tensor, spec: MatrixSpec) -> Tensor:
    """The weight's values as rows x columns, without autograd.

    Raises:
        InputError: It has another shape than the spec, or holds NaN or infinity.
    """
    if tuple(weight.shape) != spec.shape:
        found, wanted = list(weight.shape), list(spec.shape)
        raise InputError(f"a weight of shape {found} was found, {wanted} is wanted by its spec")
    require_values(weight)
    return spec.matrix(weight.detach())


def as_weight(matrix: Tensor, spec: MatrixSpec) -> Tensor:
    """A matrix of rows x columns as the weight: contiguous, cast once."""
    stored = matrix.mT if spec.transposed else matrix
    return stored.reshape(spec.shape).contiguous().to(getattr(torch, spec.dtype))


def to_json(spec: MatrixSpec) -> dict[str, object]:
    """The spec as JSON values; what plans may leave out is left out."""
    values = {
        field.name: getattr(spec, field.name)
        for field in fields(spec)
        if field.name not in spec._later or getattr(spec, field.name) != field.default
    }
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


_Spec = TypeVar("_Spec", bound=MatrixSpec)


def from_json(
    kind: type[_Spec], noun: str, data: Mapping[str, object], derived: tuple[str, ...] = ()
) -> _Spec:
    """The spec of JSON values; the constructor checks them.

    Args:
        kind: The class of the spec.
        noun: What to call it in messages: "the spec of svd".
        data: A JSON object; only `row_axes`, what a spec got later and what is derived may be
            left out.
        derived: Keys that follow from the others; the caller checks their values.

    Raises:
        PlanError: A key is missing or unknown, or a value does not fit.
    """
    if not isinstance(data, Mapping):
        raise PlanError(f"{noun} is a JSON object, found {type(data).__name__}")
    known = [field.name for field in fields(kind)]
    needed = [key for key in known if key not in kind._later]
    missing = [key for key in needed if key not in data]
    allowed = (*known, *derived)
    unknown = sorted(str(key) for key in data if key not in allowed)
    if missing:
        raise PlanError(f"{noun} lacks {', '.join(missing)}; it needs {', '.join(needed)}")
    if unknown:
        raise PlanError(
            f"{noun} has unknown keys: {', '.join(unknown)}; remove them, it has "
            f"{', '.join(allowed)}"
        )
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in data.items()
        if key in known
    }
    return kind(**values)


def _require_matrix(shape: tuple[int, ...], transposed: bool, row_axes: int) -> None:
    if type(shape) is not tuple or any(type(size) is not int or size < 1 for size in shape):
        raise PlanError(f"a weight's shape is a tuple of positive integers, found {shape!r}")
    if len(shape) < 2:
        raise PlanError(f"a weight to parametrize has two axes or more, found shape {list(shape)}")
    if type(transposed) is not bool:
        raise PlanError(f"transposed is true or false, found {transposed!r}")
    if transposed and len(shape) != 2:
        raise PlanError(f"only a weight with two axes can be transposed, found shape {list(shape)}")
    if type(row_axes) is not int or not 1 <= row_axes < len(shape):
        raise PlanError(
            f"row_axes is {row_axes!r}, wanted 1 to {len(shape) - 1} for a weight of shape "
            f"{list(shape)}"
        )
    if math.prod(shape) > MAX_ENTRIES:
        raise PlanError(f"a weight of shape {list(shape)} is larger than 2^40 entries")
