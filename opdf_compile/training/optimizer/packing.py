"""An Overparam's state as an ordinary optimizer's state_dict, and back.

    {"state": {index: state of one parameter}, "param_groups": [{.., "params": [index]}],
     "opdf": {schema, names by index, fingerprints, plan, optimizer, rank, ranks, inner_groups,
              class_state}}

Plain tensors and values only: torch.load reads it with weights_only=True.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from opdf_compile.errors import InputError
from opdf_compile.training.optimizer import weight_state as named
from opdf_compile.training.optimizer.named_state import NamedState

SCHEMA = "opdf-overparam/2"
# The first one has no class_state.
_READ = ("opdf-overparam/1", SCHEMA)
_LOG = logging.getLogger("opdf_compile")


def pack_state(optimizer: NamedState) -> dict[str, Any]:
    """The state_dict of an Overparam."""
    options = optimizer.group_options()
    names = [name for group in options for name in group["params"]]
    index = {name: place for place, name in enumerate(names)}
    states = optimizer.state_by_name()
    ranks = optimizer.program.ranks
    if ranks.size > 1:
        _LOG.warning(
            "state_dict() of a program that is shared out holds the cores of rank %d only; "
            "opdf.save_checkpoint writes those of all %d ranks",
            ranks.rank,
            ranks.size,
        )
    return {
        "state": {index[name]: state for name, state in states.items() if state},
        "param_groups": [
            {
                **{key: value for key, value in group.items() if key != "inner"},
                "params": [index[name] for name in group["params"]],
            }
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
    dict[str, named.StateDict], dict[str, list[int]], list[dict[str, Any]], named.StateDict | None
]


def unpack_state(optimizer: NamedState, state: Mapping[str, Any]) -> Unpacked:
    """What `SavedState.load_state_by_name` takes, out of a state_dict.

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
