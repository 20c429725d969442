"""Inputs for a loaded model, and the sentence where it does not run on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from opdf_compile.errors import DeviceError, InputError
from opdf_compile.parity.model_file import ModelFile


def by_name(names: Sequence[str], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs under a model's names; by position where the two models name them differently.

    Raises:
        InputError: There are more or fewer of them than the model wants.
    """
    if set(names) <= set(inputs):
        return {name: inputs[name] for name in names}
    if len(names) != len(inputs):
        raise InputError(
            f"the inputs are {', '.join(inputs) or 'none'}, the model wants "
            f"{', '.join(names) or 'none'}; give check data of this model (check=)"
        )
    return dict(zip(names, inputs.values(), strict=True))


def does_not_run(inputs: Mapping[str, Any], reason: str) -> InputError:
    """What to raise where a model fails on inputs that were to be bound."""
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
    return InputError(
        f"the model does not run on the inputs {shapes} ({reason}); give check data with "
        "inputs that it takes (check=)"
    )


def misfit_of(file: ModelFile, inputs: Mapping[str, Any]) -> str:
    """What keeps arrays from being a file's inputs; empty where they are.

    Asked before runtimes that take whatever memory they are given.
    """
    for port in file.interface.inputs:
        if port.name not in inputs:
            return f"no input {port.name!r} was given"
        array = np.asarray(inputs[port.name])
        wrong = port.misfit(array.shape)
        if array.dtype.name != port.dtype:
            wrong = f"the dtype {array.dtype.name}"
        if wrong:
            return f"input {port.name!r} has {wrong}, the file wants {port}"
    return ""


def require_dtypes(
    runtime: str, file: ModelFile, inputs: Collection[str], outputs: Collection[str]
) -> None:
    """Refuse a file whose numbers a runtime does not take or give back as they are.

    Args:
        runtime: Its name.
        file: The file.
        inputs: The dtypes that it takes.
        outputs: Those that it gives back.

    Raises:
        DeviceError: Names the first of them.
    """
    sides = (
        ("input", "take", file.interface.inputs, inputs),
        ("output", "give back", file.interface.outputs, outputs),
    )
    for what, does, ports, known in sides:
        for port in ports:
            if port.dtype not in known:
                raise DeviceError(
                    f"{runtime} cannot judge {file}, whose {what} {port.name!r} is {port.dtype} "
                    f"(it does not {does} {port.dtype}); give one of {', '.join(sorted(known))}, "
                    "or another --runtime"
                )
