"""Sample inputs for an ONNX file that another tool exported, under the file's names and dtypes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from opdf_compile.artefacts import Interface, Port, numbered
from opdf_compile.errors import InputError, first_line
from opdf_compile.graph import CallArguments, bind_forward
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.io.models.example_inputs import input_arrays

Arrays = Mapping[str, Any]


def example_of(model: Any, inputs: CallArguments, face: Interface) -> dict[str, Any]:
    """A model's own example under the file's names: by name where they agree, else in order.

    Args:
        model: A module, or programs.
        inputs: Positional and keyword inputs.
        face: The file's inputs.
    """
    args, kwargs = inputs
    flat = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    wanted = [port.name for port in face.inputs]
    named = dict(kwargs)
    if isinstance(model, nn.Module):
        named = bind_forward(model.forward, args, kwargs)
    if all(isinstance(named.get(name), Tensor) for name in wanted):
        return {name: named[name] for name in wanted}
    return dict(zip(wanted, flat, strict=False))


def samples_of(inputs: Any, face: Interface) -> list[Arrays]:
    """The samples that a caller gave: one mapping, several, or a file.

    Raises:
        InputError: There is none.
        ArtefactError: The file does not exist.
    """
    if isinstance(inputs, Mapping):
        return [inputs]
    if not isinstance(inputs, str | os.PathLike):
        given = list(inputs)
        if not given:
            raise InputError("the inputs are an empty list; give at least one sample")
        return given
    return _split(input_arrays(inputs), face, Path(inputs))


def _split(arrays: Arrays, face: Interface, file: Path) -> list[Arrays]:
    if not arrays:
        raise InputError(f"{file} holds no array, wanted {face.input_words}; add them")
    return list(numbered(arrays, [port.name for port in face.inputs]))


def fitted(sample: Arrays, face: Interface, source: Path) -> dict[str, Tensor]:
    """One sample in the file's dtypes.

    Raises:
        InputError: A name, shape or dtype does not fit the file.
    """
    unknown = [name for name in sample if name not in {port.name for port in face.inputs}]
    missing = [port.name for port in face.inputs if port.name not in sample]
    if unknown or missing:
        what = f"hold {unknown[0]!r}" if unknown else f"lack {missing[0]!r}"
        raise InputError(
            f"the inputs {what}, {source} takes {face.input_words}; name the arrays so (and "
            "NAME@0, NAME@1, ... for several samples)"
        )
    return {port.name: _array(port, sample[port.name], source) for port in face.inputs}


def _array(port: Port, given: Any, source: Path) -> Tensor:
    try:
        tensor = given.detach().cpu() if isinstance(given, Tensor) else torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the input {port.name!r} is a {type(given).__name__} that makes no tensor "
            f"({first_line(error, 120)}), {source} takes {port}; give it so"
        ) from error
    wrong = port.misfit(tuple(tensor.shape))
    wanted = getattr(torch, port.dtype)
    cast = tensor.to(wanted)
    # Rounding a float moves truth and candidate alike; a changed integer is another input.
    same_kind = kind(tensor.dtype) == kind(wanted)
    if not same_kind or (kind(wanted) == "integer" and not torch.equal(cast.long(), tensor.long())):
        wrong = wrong or f"dtype {dtype_name(tensor.dtype)}"
    if wrong:
        raise InputError(f"the input {port.name!r} has {wrong}, {source} takes {port}; give it so")
    return cast


def kind(dtype: torch.dtype) -> str:
    """Which kind of number a dtype holds."""
    if dtype.is_complex:
        return "complex"
    if dtype is torch.bool:
        return "boolean"
    return "real" if dtype.is_floating_point else "integer"
