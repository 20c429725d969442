"""What a wrapped optimizer's own state_dict() says, taken apart and put together again.

    {"state": {0: {..}, "k": .., ..}, "param_groups": [..], "count": ..}
        = what is kept for each parameter, by parameter     (by_parameter)
        + options of the groups                             (groups)
        + all else: state under other keys, further entries (rest)

The first part goes by the student's names, so it fits another number of ranks, or cores that are
stacked otherwise. The rest is the class's own affair: it goes through the class's own
load_state_dict(), and where it may speak of single parameters it is bound to their layout. A class
whose state_dict() is of another form (a wrapper around a second optimizer) has nothing but a rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from opdf_compile.errors import InputError
from opdf_compile.training.hoisted.unit import Unit
from opdf_compile.training.optimizer.plain_reading import PlainReader
from opdf_compile.training.optimizer.plain_values import PlainWriter
from opdf_compile.training.optimizer.weight_state import StateDict, own

Labels = dict[int, str]
# Names of an optimizer's parameters, group by group.
ParameterLayout = list[list[str]]
_LOG = logging.getLogger("opdf_compile")


@dataclass(frozen=True)
class InnerState:
    """The parts of one state_dict, as plain values.

    Attributes:
        by_parameter: What is kept for each parameter.
        groups: The groups as the class writes them; without the parameters.
        rest: All else; {"state": .., "top": ..}, or {"whole": ..} for a form of the class's own.
    """

    by_parameter: dict[Tensor, StateDict]
    groups: list[StateDict]
    rest: StateDict


def split_state(inner: Optimizer, labels: Labels) -> InnerState:
    """Take an optimizer's state apart.

    Raises:
        InputError: It keeps what no state holds.
    """
    packed = inner.state_dict()
    places = _places(packed, inner, labels)
    rest = _rest(packed, places, inner, labels)
    if places is None:
        return InnerState({}, [_without_params(group) for group in inner.param_groups], rest)
    state, strict = packed["state"], PlainWriter(type(inner).__name__, labels)
    by_parameter = {
        parameter: {
            strict.key(key, "state"): strict.write(value, f"state[..][{key!r}]")
            for key, value in state[place].items()
        }
        for place, parameter in places.items()
        if state.get(place)
    }
    groups = [_without_params(group) for group in packed["param_groups"]]
    return InnerState(by_parameter, groups, rest)


def is_bound(inner: Optimizer, labels: Labels) -> bool:
    """Whether an optimizer keeps what may speak of single parameters, beside their own states."""
    packed = inner.state_dict()
    try:
        return bound(_rest(packed, _places(packed, inner, labels), inner, labels))
    except InputError:  # What no state holds nobody can take apart.
        return True


def _rest(
    packed: StateDict, places: Mapping[Any, Tensor] | None, inner: Optimizer, labels: Labels
) -> StateDict:
    writer = PlainWriter(type(inner).__name__, labels, settings=True)
    if places is None:
        return {"whole": writer.write(packed, "state_dict()")}
    more, top = _beside(packed, places)
    return {"state": writer.write(more, "state"), "top": writer.write(top, "state_dict()")}


def _beside(packed: StateDict, places: Mapping[Any, Tensor]) -> tuple[StateDict, StateDict]:
    """State under other keys than a parameter's, and the entries of a state_dict beside it."""
    return (
        {key: value for key, value in packed["state"].items() if key not in places},
        {key: value for key, value in packed.items() if key not in ("state", "param_groups")},
    )


def _without_params(group: Mapping[str, Any]) -> StateDict:
    return {key: value for key, value in group.items() if key != "params"}


def _places(packed: Any, inner: Optimizer, labels: Labels) -> dict[Any, Tensor] | None:
    """Parameters by their places in a state_dict of torch's form; None for any other form."""
    groups, state = packed.get("param_groups"), packed.get("state")
    if not isinstance(groups, list) or not isinstance(state, Mapping):
        return None
    if len(groups) != len(inner.param_groups):
        return None
    places: dict[Any, Tensor] = {}
    for written, group in zip(groups, inner.param_groups, strict=True):
        if len(written["params"]) != len(group["params"]):
            return None
        places.update(zip(written["params"], group["params"], strict=True))
    # A class that steps copies of its parameters (masters in another dtype) has names for none.
    known = all(id(parameter) in labels for parameter in places.values())
    by_key = all(isinstance(state.get(place, {}), Mapping) for place in places)
    return places if known and by_key else None


def bound(rest: Mapping[str, Any]) -> bool:
    """Whether a rest may speak of single parameters: all but numbers and texts by name."""
    return "whole" in rest or not _free(dict(rest))


def _free(value: Any) -> bool:
    if isinstance(value, dict) and ("$bytes" in value or "$named" in value):
        return True
    if isinstance(value, dict):
        marked = any(key.startswith("$") for key in value)
        return not marked and all(_free(item) for item in value.values())
    if isinstance(value, Tensor):
        return value.numel() == 1
    return not isinstance(value, list)


def joined_state(
    inner: Optimizer,
    states: Mapping[Tensor, StateDict],
    rest: Mapping[str, Any] | None,
    labels: Labels,
) -> StateDict | None:
    """What `inner.load_state_dict` takes; nothing is changed yet.

    Args:
        inner: All that it keeps is to be replaced.
        states: Plain values by parameter, in memory of its own.
        rest: What `split_state` found beside them; None if that was not saved, then what the
            optimizer has of it stays.
        labels: What its parameters are called.

    Returns:
        A state_dict of the class's form; None if what was saved holds nothing for it.

    Raises:
        InputError: The state is of another form, or holds what cannot be read.
    """
    require_form(inner, rest, labels)
    packed = inner.state_dict()
    places = _places(packed, inner, labels)
    held = [p for group in inner.param_groups for p in group["params"]]
    reader = PlainReader({labels[id(p)]: p for p in held if id(p) in labels})
    if rest is not None and "whole" in rest:
        whole: StateDict = own(reader.read(rest["whole"], packed))
        return whole
    if places is None:
        _warn(inner, "all that it keeps")
        return None
    more, top = _beside(packed, places)
    if rest is None and (top or more):
        _warn(inner, ", ".join(map(repr, (*top, *more))))
    elif rest is not None:
        top = own(reader.read(rest["top"], top))
        more = own(reader.read(rest["state"], more))
    found = {
        place: {reader.key(key): reader.read(value) for key, value in states[p].items()}
        for place, p in places.items()
        if states.get(p)
    }
    return {**top, "state": {**more, **found}, "param_groups": packed["param_groups"]}


def start_anew(
    inner: Optimizer, make: Callable[..., Optimizer], cores: Collection[Tensor] | None = None
) -> None:
    """Drop what an optimizer keeps of cores that were made anew; its options stay.

    Args:
        inner: The optimizer.
        make: Builds one like it; some optimizers (Adagrad) have a state from the start.
        cores: These; None where no core's part can be dropped, then all of it starts anew.
    """
    groups = [dict(group) for group in inner.param_groups]
    fresh = make(groups) if groups else inner  # Nothing is stepped, so nothing is built.
    if cores is None:
        _LOG.warning(
            "%s keeps its state in a form of its own, of which no weight's part can be dropped: "
            "all of it starts anew",
            type(inner).__name__,
        )
        inner.load_state_dict(own(fresh.state_dict()))
    for core in cores or ():
        inner.state.pop(core, None)
        if state := fresh.state.get(core):
            inner.state[core] = state


def _warn(inner: Optimizer, what: str) -> None:
    _LOG.warning(
        "the state was saved by a version that did not keep what %s has beside its parameters' "
        "states: %s starts anew",
        type(inner).__name__,
        what,
    )


def require_form(inner: Optimizer, rest: Mapping[str, Any] | None, labels: Labels) -> None:
    """Refuse a rest of another form than the optimizer's own.

    Raises:
        InputError: With both forms.
    """
    if rest is not None and rest.keys() not in ({"whole"}, {"state", "top"}):
        raise InputError(
            f"the state of {type(inner).__name__} has the parts {sorted(rest)}, wanted 'state' and "
            "'top', or 'whole'; load an older state of the run"
        )
    whole = _places(inner.state_dict(), inner, labels) is None
    if rest is None or ("whole" in rest) == whole:
        return
    forms = ("torch's form", "a form of its class's own")
    raise InputError(
        f"the state is in {forms['whole' in rest]}, that of this {type(inner).__name__} is in "
        f"{forms[whole]}; build the optimizer as it was built when the state was saved"
    )


def labels_of(units: Iterable[Unit], names: Mapping[int, str]) -> Labels:
    """What the parameters of a wrapped optimizer are called, by id: cores and all others."""
    labels = dict(names)
    for unit in units:
        for place, core in enumerate(unit.storage):
            labels[id(core)] = "+".join(member[place] for member in unit.members)
    return labels


def require_layout(saved: ParameterLayout, present: ParameterLayout, name: str) -> None:
    """Refuse a state that was kept for other groups, another order or other stacks.

    What a class keeps in a form of its own speaks of parameters by their places.

    Raises:
        InputError: It fits in no way.
    """
    if saved == present:
        return
    raise InputError(
        f"the state holds what {name} keeps in a form of its own, for {_count(saved)} laid out in "
        f"{len(saved)} groups; here {_count(present)} lie in {len(present)} groups, or in another "
        "order; load it with the same ranks, groups, decay= and batched= as it was saved with"
    )


def _count(layout: ParameterLayout) -> str:
    return f"{sum(map(len, layout))} tensors"
