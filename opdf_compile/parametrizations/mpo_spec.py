"""The spec of an MPO: the weight's shape and the modes; bonds follow from the modes.

A weight of shape (O, I/g, *kernel) is the matrix O x (I/g * prod kernel), whatever its groups; of a
transposed convolution likewise axis 0 against the others. A linear weight stored as (I, O), the
operand of addmm, is marked `transposed` and read as its transpose, so that rows are out features.
A stack (E, O, I) is the matrix (E * O) x I: its first two axes are the rows (`row_axes`).

Full bonds bound what a plan can ask for: core k has d_{k-1} p_k d_k <= L_{k-1} p_k R_k = N entries
(N of the weight, symbols of `tensor.decompose`), so n cores add at most (n - 1) N <= 63 N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from opdf_compile.errors import InputError, PlanError
from opdf_compile.tensor import Chain, Modes

DTYPES = ("float16", "bfloat16", "float32", "float64")

# A weight with more entries than this is no weight: a plan that names one is damaged.
MAX_ENTRIES = 2**40

_REQUIRED = ("shape", "dtype", "transposed", "out_modes", "in_modes")
_OPTIONAL = ("row_axes", "bonds")


@dataclass(frozen=True)
class MpoSpec:
    """How one weight becomes an MPO.

    Attributes:
        shape: Shape of the weight, two axes or more.
        dtype: Name of the weight's dtype; cores of half weights are float32.
        transposed: The weight is stored as (in features, out features).
        out_modes: Factors of the rows, one per core.
        in_modes: Factors of the columns, one per core.
        row_axes: How many leading axes of the shape are the rows.

    Raises:
        PlanError: A value is of the wrong kind, or the modes do not multiply to the weight's sizes.
    """

    shape: tuple[int, ...]
    dtype: str
    transposed: bool
    out_modes: Modes
    in_modes: Modes
    row_axes: int = 1

    def __post_init__(self) -> None:
        """Refuse what no weight or chain can be."""
        rows, cols = matrix_sizes(self.shape, transposed=self.transposed, row_axes=self.row_axes)
        if self.dtype not in DTYPES:
            raise PlanError(
                f"dtype is {self.dtype!r}; an MPO weight has one of {', '.join(DTYPES)}"
            )
        try:
            chain = self.chain
        except InputError as error:
            raise PlanError(
                f"the MPO of a weight of shape {list(self.shape)} is no chain: {error}"
            ) from error
        _require_product("out_modes", self.out_modes, chain.rows, rows, self.shape)
        _require_product("in_modes", self.in_modes, chain.cols, cols, self.shape)

    @cached_property
    def chain(self) -> Chain:
        """The chain of the modes."""
        return Chain(self.out_modes, self.in_modes)

    def with_dtype(self, dtype: str) -> MpoSpec:
        """The same modes for a weight of another dtype; "float64" is what fold composes in."""
        return replace(self, dtype=dtype)


def matrix_sizes(shape: tuple[int, ...], *, transposed: bool, row_axes: int = 1) -> tuple[int, int]:
    """(rows, columns) of a weight: the product of its leading axes, and that of the others.

    Raises:
        PlanError: The shape is no weight's.
    """
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
    rows, cols = math.prod(shape[:row_axes]), math.prod(shape[row_axes:])
    return (cols, rows) if transposed else (rows, cols)


def spec_to_json(spec: MpoSpec) -> dict[str, object]:
    """The spec as JSON values, with the bonds for the reader."""
    stack = {"row_axes": spec.row_axes} if spec.row_axes != 1 else {}
    return {
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "transposed": spec.transposed,
        **stack,
        "out_modes": list(spec.out_modes),
        "in_modes": list(spec.in_modes),
        "bonds": list(spec.chain.bonds),
    }


def spec_from_json(data: Mapping[str, object]) -> MpoSpec:
    """The spec of JSON values.

    `row_axes` may be left out where it is 1; `bonds` may be left out, and must be the full ones
    where given.

    Raises:
        PlanError: A key is missing or unknown, or a value does not fit.
    """
    if not isinstance(data, Mapping):
        raise PlanError(f"an MPO spec is a JSON object, found {type(data).__name__}")
    missing = [key for key in _REQUIRED if key not in data]
    unknown = sorted(str(key) for key in data if key not in (*_REQUIRED, *_OPTIONAL))
    if missing:
        raise PlanError(f"the MPO spec lacks {', '.join(missing)}; it needs {', '.join(_REQUIRED)}")
    if unknown:
        raise PlanError(f"the MPO spec has unknown keys: {', '.join(unknown)}; remove them")
    dtype, transposed = data["dtype"], data["transposed"]
    if type(dtype) is not str or type(transposed) is not bool:
        found = f"{dtype!r} and {transposed!r}"
        raise PlanError(f"dtype must be a string and transposed true or false, found {found}")
    shape, out_modes, in_modes = (
        _integers(data, key) for key in ("shape", "out_modes", "in_modes")
    )
    row_axes: Any = data.get("row_axes", 1)
    spec = MpoSpec(shape, dtype, transposed, out_modes, in_modes, row_axes)
    if "bonds" in data and _integers(data, "bonds") != spec.chain.bonds:
        raise PlanError(
            f"bonds are {data['bonds']}, and OPDF never truncates: the full bonds of these modes"
            f" are {list(spec.chain.bonds)}; write those or leave bonds out"
        )
    return spec


def _integers(data: Mapping[str, object], key: str) -> tuple[int, ...]:
    value = data[key]
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    # bool is a subclass of int; a JSON true is no size.
    if not is_list or any(type(entry) is not int or entry < 1 for entry in value):  # type: ignore[attr-defined]
        raise PlanError(f"{key} must be a list of positive integers, found {value!r}")
    return tuple(value)  # type: ignore[arg-type]


def _require_product(
    name: str, modes: Modes, found: int, wanted: int, shape: tuple[int, ...]
) -> None:
    if found != wanted:
        raise PlanError(
            f"{name} {list(modes)} multiply to {found}, and the weight of shape {list(shape)} wants"
            f" {wanted}; choose factors of {wanted}"
        )
