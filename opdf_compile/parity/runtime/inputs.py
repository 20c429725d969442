"""Inputs for a loaded model, and the sentence where it does not run on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opdf_compile.errors import InputError


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
