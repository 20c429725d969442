"""The wrapped optimizer's state by the student's own parameter names, and back.

    matched weight W:   {"cores.k": T_k, "cores.k.exp_avg": .., "cores.k.step": .., ..}
    other parameter:    {"exp_avg": .., "step": .., ..}         as the wrapped optimizer keeps it

The names do not tell whether weights were batched, or on which rank their cores were: the rows of a
batch are given apart, and put together again when they are loaded.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opdf_compile.errors import InputError
from opdf_compile.training.hoisted.binding import is_sharded
from opdf_compile.training.hoisted.unit import Unit

StateDict = dict[str, Any]


def weight_states(unit: Unit, kept: Mapping[Tensor, StateDict]) -> dict[str, StateDict]:
    """The cores of a unit's weights and what the optimizer keeps of them, by weight.

    Args:
        unit: One part of the program.
        kept: What the optimizer keeps of its parameters.
    """
    named: dict[str, StateDict] = {}
    for row, bound in enumerate(unit.weights):
        names = unit.members[row] if unit.batched else unit.members[0]
        state: StateDict = {}
        for name in bound.entry.core_names:
            place, label = names.index(name), f"cores.{bound.entry.core_names.index(name)}"
            core, shape = unit.storage[place], unit.shapes[place]
            state[label] = row_of(_laid(core.detach(), core.shape, shape), core, row, unit)
            for key, value in kept.get(core, {}).items():
                value = _laid(value, core.shape, shape)
                state[f"{label}.{key}"] = row_of(value, core, row, unit)
        named[bound.key] = state
    return named


def _laid(value: Any, present: torch.Size, wanted: torch.Size) -> Any:
    """What has one entry for each of a core, in the core's own axes or in those it is stored in."""
    if present == wanted or not isinstance(value, Tensor) or value.shape != present:
        return value
    return value.reshape(wanted)


def row_of(value: Any, core: Tensor, row: int, unit: Unit) -> Any:
    """A member's share of a value that the optimizer keeps for a core.

    Raises:
        InputError: The value is a tensor of a class of its own, which has no rows.
    """
    return _row(value, core, row) if unit.batched else value


def _row(value: Any, core: Tensor, row: int) -> Any:
    if isinstance(value, dict) and "$class" not in value:
        return {key: _row(item, core, row) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_row(item, core, row) for item in value)
    if isinstance(value, dict) or hasattr(value, "__tensor_flatten__"):
        raise InputError(
            "batched=True stacks cores, and the wrapped optimizer keeps tensors of a class of its "
            "own for a stack, which have no rows; leave batched out"
        )
    if isinstance(value, Tensor) and value.shape == core.shape:
        return value[row]
    return value


def joins(unit: Unit, states: Mapping[str, StateDict]) -> bool:
    """Whether the members' states can be one state: they agree in all that is not kept by entry."""
    if not unit.batched:
        return True
    for place, core in enumerate(unit.storage):
        first, *others = _rows(unit, place, states)
        if not all(_joins(first, other, core) for other in others):
            return False
    return True


def _joins(left: Any, right: Any, core: Tensor) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        same = left.keys() == right.keys()
        return same and all(_joins(left[key], right[key], core) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(
            _joins(*pair, core) for pair in zip(left, right, strict=True)
        )
    return (_of_entries(left, core) and _of_entries(right, core)) or equal(left, right)


def core_states(unit: Unit, states: Mapping[str, StateDict]) -> dict[Tensor, StateDict]:
    """The inverse of `weight_states`: what the optimizer keeps, by stored core.

    The states of a batch's members must agree, see `joins`.
    """
    found: dict[Tensor, StateDict] = {}
    for place, core in enumerate(unit.storage):
        rows = _rows(unit, place, states)
        if unit.batched:
            found[core] = _join(rows, core)
        else:
            shape = unit.shapes[place]
            found[core] = {
                key: own(_laid(value, shape, core.shape)) for key, value in rows[0].items()
            }
    return found


def _rows(unit: Unit, place: int, states: Mapping[str, StateDict]) -> list[StateDict]:
    """What the members keep of the core at one place; of a unit that is no batch, one entry."""
    return [
        _of_core(bound.entry.core_names, unit, place, row, states[bound.key])
        for row, bound in enumerate(unit.weights)
        if unit.batched or unit.members[0][place] in bound.entry.core_names
    ]


def _of_core(
    names: Sequence[str], unit: Unit, place: int, row: int, state: Mapping[str, Any]
) -> StateDict:
    """One member's share of one core's state, under the optimizer's own keys."""
    name = unit.members[row if unit.batched else 0][place]
    prefix = f"cores.{names.index(name)}."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _join(values: list[Any], core: Tensor) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {key: _join([value[key] for value in values], core) for key in first}
    if type(first) in (list, tuple):
        return type(first)(_join(list(parts), core) for parts in zip(*values, strict=True))
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
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple | deque) and type(left) is type(right):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(np.all(left == right))


def own(value: Any) -> Any:
    """A copy that shares no memory with the value, so that a state and an optimizer share none."""
    if isinstance(value, Tensor):
        return _own_tensor(value)
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(own(item) for item in value)
    if type(value) is deque:
        return deque((own(item) for item in value), maxlen=value.maxlen)
    if type(value) is defaultdict:
        return defaultdict(value.default_factory, {key: own(item) for key, item in value.items()})
    if type(value) in (dict, OrderedDict, Counter):
        return type(value)({key: own(item) for key, item in value.items()})
    return value.copy() if isinstance(value, np.ndarray) else value


def _own_tensor(value: Tensor) -> Tensor:
    if type(value) is Tensor or is_sharded(value) or not hasattr(value, "__tensor_flatten__"):
        return value.detach().clone()
    # The quantised states of some libraries know no clone.
    parts, context = value.__tensor_flatten__()
    copies = {part: own(getattr(value, part)) for part in parts}
    made: Tensor = type(value).__tensor_unflatten__(  # type: ignore[attr-defined]
        copies, context, value.size(), value.stride()
    )
    return made
