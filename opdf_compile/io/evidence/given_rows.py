"""The user's rows as calls of a model, in batches of the example's size."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from opdf_compile.artefacts import Port, read_rows
from opdf_compile.errors import InputError
from opdf_compile.graph import AxisNames, CallArguments
from opdf_compile.io.dtypes import dtype_name

Samples = Mapping[str, Any] | str | os.PathLike[str]
# Inputs, and the labels of their rows by name.
GivenRows = tuple[CallArguments, Mapping[str, Any]]
# What the rows may add to a file: 800 images of 224 x 224 pixels.
_MOST_BYTES = 512 << 20


def given_rows(
    samples: Samples | None, example: CallArguments, axis_names: AxisNames
) -> list[GivenRows]:
    """The calls that run the user's rows.

    Args:
        samples: An `.npz` file, or arrays by name: inputs with the rows on the first axis, and
            labels; None for none.
        example: Inputs of the model, whose tensors those of the rows replace.
        axis_names: Its tensor inputs in order, each with the names of its free axes.

    Raises:
        InputError: The samples do not fit the model.
        ArtefactError: The file does not exist.
    """
    if samples is None:
        return []
    ports, size = ports_of(example, axis_names)
    return [
        (filled(example, [batch.inputs[name] for name in axis_names]), batch.labels)
        for batch in read_rows(samples, ports, size)
    ]


def ports_of(example: CallArguments, axis_names: AxisNames) -> tuple[list[Port], int]:
    """The inputs that rows of one's own must fit, and how many rows the example has.

    Args:
        example: Inputs of the model.
        axis_names: Its tensor inputs in order, each with the names of its free axes.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    ports = [
        Port(
            name,
            dtype_name(tensor.dtype),
            tuple(axes.get(axis, int(size)) for axis, size in enumerate(tensor.shape)),
        )
        for (name, axes), tensor in zip(axis_names.items(), tensors, strict=True)
    ]
    return ports, next((len(tensor) for tensor in tensors if tensor.ndim), 1)


def filled(example: CallArguments, arrays: Iterable[Any]) -> CallArguments:
    """The example with arrays, in order, in the place of its tensors."""
    leaves, spec = pytree.tree_flatten(example)
    values = iter(arrays)
    new = [_like(leaf, next(values)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(new, spec)
    return args, kwargs


def require_room(batch_bytes: int, batches: int, batch_rows: int) -> None:
    """Refuse rows that would make check data too large.

    Args:
        batch_bytes: What the first batch takes with its outputs; the others are about as large.
        batches: How many there are.
        batch_rows: The rows of the first.

    Raises:
        InputError: They are too many.
    """
    whole = batch_bytes * batches
    if whole > _MOST_BYTES:
        fit = _MOST_BYTES // batch_bytes * batch_rows
        fewer = f"give the first {fit:,} rows, or give them" if fit else "give them"
        raise InputError(
            f"the samples with their outputs take about {whole >> 20} MiB, wanted at most "
            f"{_MOST_BYTES >> 20} MiB in check data; {fewer} to verify --samples alone"
        )


def _like(tensor: Tensor, array: Any) -> Tensor:
    plain = array.view("uint16") if array.dtype.name == "bfloat16" else array
    # A file's array may be read-only, which torch warns of.
    found = torch.from_numpy(plain if plain.flags.writeable else plain.copy())
    wide = found.view(torch.bfloat16) if plain is not array else found
    return wide.to(tensor.device)
