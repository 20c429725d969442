"""The wrapped optimizer's state by the student's own parameter names, and back.

    matched weight W:   {"cores.k": T_k, "cores.k.exp_avg": .., "cores.k.step": .., ..}
    other parameter:    {"exp_avg": .., "step": .., ..}         as the wrapped optimizer keeps it

The names do not tell whether weights were batched, or on which rank their cores were: the rows of a
batch are given apart, and put together again when they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from opdf_compile.training.hoisted.unit import Unit

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
            state[label] = row_of(core.detach(), core, row, unit)
            for key, value in inner.state.get(core, {}).items():
                state[f"{label}.{key}"] = row_of(value, core, row, unit)
        named[bound.key] = state
    return named


def row_of(value: Any, core: Tensor, row: int, unit: Unit) -> Any:
    """A member's share of a value that the optimizer keeps for a core."""
    if unit.batched and isinstance(value, Tensor) and value.shape == core.shape:
        return value[row]
    return value


def joins(unit: Unit, states: Mapping[str, State]) -> bool:
    """Whether the members' states can be one state: they agree in all that is not kept by entry."""
    if not unit.batched:
        return True
    for place, core in enumerate(unit.storage):
        first, *others = _rows(unit, place, states)
        for other in others:
            if first.keys() != other.keys():
                return False
            same = (_of_entries(v, core) or equal(v, other[k]) for k, v in first.items())
            if not all(same):
                return False
    return True


def core_states(unit: Unit, states: Mapping[str, State]) -> dict[Tensor, State]:
    """The inverse of `weight_states`: what the optimizer keeps, by stored core.

    The states of a batch's members must agree, see `joins`.
    """
    found: dict[Tensor, State] = {}
    for place, core in enumerate(unit.storage):
        rows = _rows(unit, place, states)
        if unit.batched:
            found[core] = {key: _join([r[key] for r in rows], core) for key in rows[0]}
        else:
            found[core] = {key: own(value) for key, value in rows[0].items()}
    return found


def _rows(unit: Unit, place: int, states: Mapping[str, State]) -> list[State]:
    """What the members keep of the core at one place; of a unit that is no batch, one entry."""
    return [
        _of_core(bound.entry.core_names, unit, place, row, states[bound.key])
        for row, bound in enumerate(unit.weights)
        if unit.batched or unit.members[0][place] in bound.entry.core_names
    ]


def _of_core(
    names: Sequence[str], unit: Unit, place: int, row: int, state: Mapping[str, Any]
) -> State:
    """One member's share of one core's state, under the optimizer's own keys."""
    name = unit.members[row if unit.batched else 0][place]
    prefix = f"cores.{names.index(name)}."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _join(values: list[Any], core: Tensor) -> Any:
    if _of_entries(values[0], core):
        return torch.stack([value.to(core.device) for value in values])
    return own(values[0])


def _of_entries(value: Any, stack: Tensor) -> bool:
    """Whether a member's value has one number for each entry of its core."""
    return isinstance(value, Tensor) and value.shape == stack.shape[1:]


def equal(left: Any, right: Any) -> bool:
    """Whether two values of a state or of an option are the same."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left.cpu(), right.cpu())
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return False
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


def reset(unit: Unit, inner: Optimizer, make: Callable[..., Optimizer]) -> None:
    """Drop what the optimizer keeps of the cores of a unit: they were made anew.

    Args:
        unit: All its weights were made anew.
        inner: The wrapped optimizer.
        make: Builds one like it; some optimizers (Adagrad) have a state from the start.
    """
    for core in unit.storage:
        inner.state.pop(core, None)
        group = next(g for g in inner.param_groups if any(p is core for p in g["params"]))
        fresh = make([{**group, "params": [core]}]).state.get(core)
        if fresh:
            inner.state[core] = fresh
