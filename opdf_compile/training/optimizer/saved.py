"""An Overparam's state as an ordinary optimizer's state_dict, and back.

    {"state": {index: state of one parameter}, "param_groups": [{.., "params": [index]}],
     "opdf": {schema, names by index, fingerprints, plan, optimizer, rank, ranks, inner_groups,
              class_state}}

Plain tensors and values only: torch.load reads it with weights_only=True.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from opdf_compile.errors import InputError
from opdf_compile.training.optimizer import state as named
from opdf_compile.training.optimizer.inner_state import bound, given, require_form
from opdf_compile.training.optimizer.layout import require_layout
from opdf_compile.training.optimizer.unbatching import take_apart

if TYPE_CHECKING:
    from opdf_compile.training.optimizer.named_state import NamedState

SCHEMA = "opdf-overparam/2"
# The first one has no class_state.
_READ = ("opdf-overparam/1", SCHEMA)
logger = logging.getLogger("opdf_compile")


def pack_state(optimizer: NamedState) -> dict[str, Any]:
    """The state_dict of an Overparam."""
    options = optimizer.group_options()
    names = [name for group in options for name in group["params"]]
    index = {name: place for place, name in enumerate(names)}
    states = optimizer.state_by_name()
    ranks = optimizer.program.ranks
    if ranks.size > 1:
        logger.warning(
            "state_dict() of a program that is shared out holds the cores of rank %d only; "
            "opdf.save_checkpoint writes those of all %d ranks",
            ranks.rank,
            ranks.size,
        )
    return {
        "state": {index[name]: state for name, state in states.items() if state},
        "param_groups": [
            {**_without(group, "inner"), "params": [index[name] for name in group["params"]]}
            for group in options
        ],
        "opdf": {
            "schema": SCHEMA,
            "names": dict(enumerate(names)),
            "fingerprints": optimizer.fingerprints(),
            "plan": optimizer.plan.to_json(),
            "optimizer": type(optimizer.inner).__name__,
            "rank": ranks.rank,
            "ranks": ranks.size,
            "inner_groups": [group["inner"] for group in options],
            "class_state": optimizer.class_state(),
        },
    }


Unpacked = tuple[
    dict[str, named.State], dict[str, list[int]], list[dict[str, Any]], named.State | None
]


def unpack_state(optimizer: NamedState, state: Mapping[str, Any]) -> Unpacked:
    """What `NamedState.load_state_by_name` takes, out of a state_dict.

    Raises:
        InputError: It is the state of another optimizer, or of another rank.
    """
    extra = state.get("opdf")
    if not isinstance(extra, Mapping) or extra.get("schema") not in _READ:
        raise InputError(_foreign(state))
    ranks = optimizer.program.ranks
    if (extra["rank"], extra["ranks"]) != (ranks.rank, ranks.size):
        raise InputError(
            f"the state holds the cores of rank {extra['rank']} of {extra['ranks']}, this is rank "
            f"{ranks.rank} of {ranks.size}; use opdf.save_checkpoint and opdf.load_checkpoint"
        )
    wrapped = type(optimizer.inner).__name__
    if extra["optimizer"] != wrapped:
        raise InputError(
            f"the state is that of {extra['optimizer']}, this optimizer wraps {wrapped}; wrap the "
            "same one, or start from the weights: load the model and build the optimizer"
        )
    names = {int(place): name for place, name in extra["names"].items()}
    states = {names[int(place)]: dict(value) for place, value in state["state"].items()}
    groups = [
        {**group, "params": [names[place] for place in group["params"]], "inner": inner}
        for group, inner in zip(state["param_groups"], extra["inner_groups"], strict=True)
    ]
    return states, dict(extra["fingerprints"]), groups, extra.get("class_state")


def _foreign(state: Mapping[str, Any]) -> str:
    """Why a state cannot be loaded that no Overparam gave."""
    kept = state.get("state", {})
    if any("cores.0" in of for of in kept.values() if isinstance(of, Mapping)):
        return (
            "the state holds cores without the names and checksums of their weights, as "
            "torch.distributed.checkpoint leaves it, which keeps 'state' and 'param_groups' only; "
            "use opdf.save_checkpoint and opdf.load_checkpoint, or torch.save of state_dict()"
        )
    return (
        "the state holds no cores, it is that of a plain optimizer; load a state that "
        "Overparam.state_dict() gave, or start from the weights: Overparam(student, ..)"
    )


def load_state(
    optimizer: NamedState,
    states: Mapping[str, named.State],
    fingerprints: Mapping[str, list[int]],
    groups: list[dict[str, Any]],
    class_state: named.State | None,
) -> None:
    """Check everything, then change the optimizer; see `NamedState.load_state_by_name`."""
    _require_groups(optimizer, groups)
    _require_class_state(optimizer, class_state)
    program = optimizer.program
    cores: dict[str, Tensor] = {}
    for key in (key for unit in optimizer.units() for key in unit.keys):
        cores.update(_require_cores(optimizer, key, states.get(key, {})))
    if optimizer.alignment is not None:
        optimizer.alignment.require_state(states)
    for unit in optimizer.units():
        if not named.joins(unit, states):
            take_apart(program, unit, optimizer.inner)
    inner: dict[Tensor, named.State] = {}
    for unit in optimizer.units():
        inner.update(named.core_states(unit, states))
    parameters = dict(program.module.named_parameters(remove_duplicate=False))
    matched = {entry.key for entry in optimizer.plan.entries}
    for name in optimizer.owned_names():
        if name not in matched and states.get(name):
            inner[parameters[name]] = {k: named.own(v) for k, v in states[name].items()}
    rest = class_state["rest"] if class_state is not None else None
    state = given(optimizer.inner, inner, rest, optimizer.labels())
    options = optimizer.read_options(groups)
    # All is read; from here on it changes. What the class itself refuses it refuses first.
    if state is not None:
        optimizer.inner.load_state_dict(state)
    program.fill(cores)
    if optimizer.alignment is not None:
        optimizer.alignment.load_state_by_name(states)
    optimizer.put_options(*options)
    program.expect(
        {
            key: torch.tensor(value, dtype=torch.int64, device=program.device(key))
            for key, value in fingerprints.items()
            if key in matched
        }
    )


def _require_groups(optimizer: NamedState, groups: list[dict[str, Any]]) -> None:
    present = optimizer.group_options()
    found = [list(group["params"]) for group in groups]
    wanted = [list(group["params"]) for group in present]
    if found == wanted:
        return
    odd = sorted({n for names in found for n in names} ^ {n for names in wanted for n in names})
    what = f"they differ in {odd[0]!r}" if odd else "they hold the same names in other groups"
    raise InputError(
        f"the state has {len(found)} groups of {sum(map(len, found))} parameters, this optimizer "
        f"has {len(wanted)} of {sum(map(len, wanted))} ({what}); build it as it was built when the "
        "state was saved"
    )


def _require_class_state(optimizer: NamedState, state: named.State | None) -> None:
    labels, inner = optimizer.labels(), optimizer.inner
    require_form(inner, state["rest"] if state is not None else None, labels)
    if state is not None and bound(state["rest"]):
        require_layout(state["layout"], optimizer.layout(), type(inner).__name__)


def _require_cores(optimizer: NamedState, key: str, state: named.State) -> dict[str, Tensor]:
    entry = next(e for e in optimizer.plan.entries if e.key == key)
    wanted = [tuple(core.shape) for core in optimizer.program.cores(key)]
    found = [
        tuple(state[f"cores.{place}"].shape) if f"cores.{place}" in state else None
        for place in range(len(wanted))
    ]
    if found != wanted or f"cores.{len(wanted)}" in state:
        raise InputError(
            f"the state holds cores of shapes {found} for {key!r}, wanted {wanted}; build the "
            "optimizer with the plan of that state"
        )
    return named.cores_of_state(entry.core_names, state)


def _without(group: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in keys}
