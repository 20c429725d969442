"""What an alignment saves: the teacher's cores, by the student's weight and the place of the core.

In an optimizer's state a core's label is `teacher.PLACE`, beside the state of the weight itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from opdf_compile.errors import InputError
from opdf_compile.training import States

# By weight, then by place of the core.
Targets = Mapping[str, Mapping[int, Tensor]]
_LABEL = "teacher."


def by_name(targets: Targets) -> dict[str, dict[str, Any]]:
    """Labels instead of places."""
    return {
        key: {f"{_LABEL}{k}": target for k, target in kept.items()} for key, kept in targets.items()
    }


def unflattened(state: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """States by weight, from names `WEIGHT.teacher.PLACE`."""
    states: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        key, _, place = name.rpartition(f".{_LABEL}")
        states.setdefault(key, {})[f"{_LABEL}{place}"] = value
    return states


def require(states: States, targets: Targets) -> None:
    """Refuse a state without the cores that the student was aligned to.

    Raises:
        InputError: One is missing or has another shape.
    """
    for key, kept in targets.items():
        saved = states.get(key, {})
        found = {k: _shape(saved.get(f"{_LABEL}{k}")) for k in kept}
        wanted = {k: tuple(target.shape) for k, target in kept.items()}
        if found != wanted:
            raise InputError(
                f"the state of {key!r} holds teacher's cores of shapes {found}, wanted "
                f"{wanted}: it was saved with another alignment or none, and its cores are in "
                "another gauge; load it without alignment, or load only the model's weights "
                "and build the optimizer anew"
            )


def restored(states: States, targets: Targets) -> dict[str, dict[int, Tensor]]:
    """Copies of the saved cores, where and as the present ones are.

    Raises:
        InputError: One is missing or has another shape.
    """
    require(states, targets)
    return {
        key: {k: _restored(states[key][f"{_LABEL}{k}"], target) for k, target in kept.items()}
        for key, kept in targets.items()
    }


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _restored(value: Tensor, like: Tensor) -> Tensor:
    return value.detach().to(device=like.device, dtype=like.dtype, copy=True)
