"""The wrapped optimizer's state by the student's own parameter names, and back.

    matched weight W:   {"cores.k": T_k, "cores.k.exp_avg": .., "cores.k.step": .., ..}
    other parameter:    {"exp_avg": .., "step": .., ..}         as the wrapped optimizer keeps it

The names do not tell whether weights were batched, or on which rank their cores were: the rows of a
batch are given apart, and put together again when they are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from opdf_compile.errors import InputError
from opdf_compile.training.unit import Unit

State = dict[str, Any]


def weight_states(unit: Unit, inner: Optimizer) -> dict[str, State]:
    """The cores of a unit's weights and what the optimizer keeps of them, by weight."""
    named: dict[str, State] = {}
    for row, bound in enumerate(unit.weights):
        names = unit.members[row] if unit.batched else unit.members[0]
        state: State = {}
        for name in bound.entry.core_names:
            place, label = names.index(name), f"cores.{bound.entry.core_names.index(name)}"
            core = unit.storage[place]
            state[label] = _row(core.detach(), core, row, unit)
            for key, value in inner.state.get(core, {}).items():
                state[f"{label}.{key}"] = _row(value, core, row, unit)
        named[bound.key] = state
    return named


def _row(value: Any, core: Tensor, row: int, unit: Unit) -> Any:
    """A member's share of a value that the optimizer keeps for a stack."""
    if unit.batched and isinstance(value, Tensor) and value.shape == core.shape:
        return value[row]
    return value


def core_states(unit: Unit, states: Mapping[str, State]) -> dict[Tensor, State]:
    """The inverse of `weight_states`: what the optimizer keeps, by stored core.

    Raises:
        InputError: Members of a batch do not agree, such as in their number of steps.
    """
    found: dict[Tensor, State] = {}
    for place, core in enumerate(unit.storage):
        rows = [
            _of_core(bound.entry.core_names, unit, place, row, states[bound.key])
            for row, bound in enumerate(unit.weights)
            if unit.batched or unit.members[0][place] in bound.entry.core_names
        ]
        if unit.batched:
            found[core] = {key: _join(key, [r[key] for r in rows], core) for key in rows[0]}
        else:
            found[core] = {key: own(value) for key, value in rows[0].items()}
    return found


def _of_core(
    names: Sequence[str], unit: Unit, place: int, row: int, state: Mapping[str, Any]
) -> State:
    """One member's share of one core's state, under the optimizer's own keys."""
    name = unit.members[row if unit.batched else 0][place]
    prefix = f"cores.{names.index(name)}."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _join(key: str, values: list[Any], core: Tensor) -> Any:
    first = values[0]
    if isinstance(first, Tensor) and first.shape == core.shape[1:] and core.ndim == first.ndim + 1:
        return torch.stack([value.to(core.device) for value in values])
    if any(not _equal(first, value) for value in values[1:]):
        raise InputError(
            f"the members of a batch differ in {key!r}, and a batch steps them together; build the "
            "optimizer with batched=False to load this state"
        )
    return own(first)


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left.cpu(), right.cpu())
    return bool(left == right)


def own(value: Any) -> Any:
    """A copy, so that the state that was loaded and the optimizer do not share memory."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def load_inner(inner: Optimizer, states: Mapping[Tensor, State]) -> None:
    """Give the wrapped optimizer its state; its own rules for dtype and device apply."""
    packed = inner.state_dict()
    order = [p for group in inner.param_groups for p in group["params"]]
    packed["state"] = {
        place: states[parameter] for place, parameter in enumerate(order) if states.get(parameter)
    }
    inner.load_state_dict(packed)


def cores_of_state(names: Sequence[str], state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The cores of one weight by name, out of its state."""
    return {name: state[f"cores.{place}"] for place, name in enumerate(names)}


def reset(unit: Unit, inner: Optimizer, keys: Sequence[str]) -> None:
    """Drop what the optimizer keeps of the cores of these weights: they were made anew."""
    rows = [row for row, bound in enumerate(unit.weights) if bound.key in keys]
    for core in unit.storage if rows else ():
        state = inner.state.get(core)
        if state is None:
            continue
        if not unit.batched:
            del inner.state[core]
            continue
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == core.shape:
                value[rows] = 0
