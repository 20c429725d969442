"""The spec of an MPO: the weight's form and the modes; bonds follow from the modes.

Full bonds bound what a plan can ask for: core k has d_{k-1} p_k d_k <= L_{k-1} p_k R_k = N entries
(N of the weight, symbols of `tensor.decomposition`), so n cores add at most (n - 1) N <= 63 N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from opdf_compile.errors import InputError, PlanError
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, from_json, to_json
from opdf_compile.tensor import Chain, Modes


@dataclass(frozen=True)
class MpoSpec(MatrixSpec):
    """How one weight becomes an MPO.

    Attributes:
        out_modes: Factors of the rows, one per core.
        in_modes: Factors of the columns, one per core.

    Raises:
        PlanError: A value is of the wrong kind, or the modes do not multiply to the weight's sizes.
    """

    out_modes: Modes = ()
    in_modes: Modes = ()

    _noun: ClassVar[str] = "an MPO weight"

    def __post_init__(self) -> None:
        """Refuse what no weight or chain can be."""
        super().__post_init__()
        try:
            chain = self.chain
        except InputError as error:
            raise PlanError(
                f"the MPO of a weight of shape {list(self.shape)} is no chain: {error}"
            ) from error
        _require_product("out_modes", self.out_modes, chain.rows, self.rows, self.shape)
        _require_product("in_modes", self.in_modes, chain.cols, self.cols, self.shape)

    @cached_property
    def chain(self) -> Chain:
        """The chain of the modes."""
        return Chain(self.out_modes, self.in_modes)


def spec_to_json(spec: MpoSpec) -> dict[str, object]:
    """The spec as JSON values, with the bonds for the reader."""
    return {**to_json(spec), "bonds": list(spec.chain.bonds)}


def spec_from_json(data: Mapping[str, object]) -> MpoSpec:
    """The spec of JSON values.

    `row_axes` may be left out where it is 1; `bonds` may be left out, and must be the full ones
    where given.

    Raises:
        PlanError: A key is missing or unknown, or a value does not fit.
    """
    if not isinstance(data, Mapping):
        raise PlanError(f"an MPO spec is a JSON object, found {type(data).__name__}")
    for key in ("shape", "out_modes", "in_modes", "bonds"):
        _require_integers(key, data.get(key, ()))
    dtype, transposed = data.get("dtype", ""), data.get("transposed", False)
    if type(dtype) is not str or type(transposed) is not bool:
        found = f"{dtype!r} and {transposed!r}"
        raise PlanError(f"dtype must be a string and transposed true or false, found {found}")
    spec = from_json(MpoSpec, "the MPO spec", data, derived=("bonds",))
    if "bonds" in data and tuple(data["bonds"]) != spec.chain.bonds:  # type: ignore[arg-type]
        raise PlanError(
            f"bonds are {data['bonds']}, and OPDF never truncates: the full bonds of these modes"
            f" are {list(spec.chain.bonds)}; write those or leave bonds out"
        )
    return spec


def _require_integers(key: str, value: object) -> None:
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    # bool is a subclass of int; a JSON true is no size.
    if not is_list or any(type(entry) is not int or entry < 1 for entry in value):  # type: ignore[attr-defined]
        raise PlanError(f"{key} must be a list of positive integers, found {value!r}")


def _require_product(
    name: str, modes: Modes, found: int, wanted: int, shape: tuple[int, ...]
) -> None:
    if found != wanted:
        raise PlanError(
            f"{name} {list(modes)} multiply to {found}, and the weight of shape {list(shape)} wants"
            f" {wanted}; choose factors of {wanted}"
        )
