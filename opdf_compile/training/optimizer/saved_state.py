"""An Overparam's state saved and taken over: everything is checked, then it changes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import InputError
from opdf_compile.training.optimizer import weight_state as named
from opdf_compile.training.optimizer.fused import lay_alike
from opdf_compile.training.optimizer.groups import Group, decays
from opdf_compile.training.optimizer.inner_state import (
    bound,
    joined_state,
    require_form,
    require_layout,
)
from opdf_compile.training.optimizer.named_state import NamedState
from opdf_compile.training.optimizer.packing import pack_state, unpack_state
from opdf_compile.training.optimizer.unbatching import take_apart


class SavedState(NamedState):
    """The part of an Overparam that saves and loads."""

    def load_state_by_name(
        self,
        states: Mapping[str, named.StateDict],
        fingerprints: Mapping[str, list[int]],
        groups: list[Group],
        class_state: named.StateDict | None = None,
    ) -> None:
        """Take over what `state_by_name`, `fingerprints`, `group_options`, `class_state` gave.

        Args:
            states: At least what this rank owns.
            fingerprints: Checksums of the weights at the time; load those weights as well.
            groups: Options of each group, in order.
            class_state: None where an earlier version saved the state, which kept none.

        Raises:
            InputError: The state is of another student or plan, or the student was rebuilt since;
                nothing is changed then.
        """
        # Unsharded parameters are other objects, and their state would find nobody.
        self._follow_parameters()
        self.program.require_held()
        with self._decaying_as(groups):
            _load(self, states, fingerprints, groups, class_state)
        self._mode = None  # The state may have been saved in the other mode.
        self._show_cores()

    @contextlib.contextmanager
    def _decaying_as(self, saved: list[Group]) -> Iterator[None]:
        """Decay, or do not, as what is to be loaded: the inner groups may be laid out by that."""
        key = "weight_decay"
        odd = [
            (group, group[key], wanted[key])
            for group, wanted in zip(self.param_groups, saved, strict=False)
            if key in group and key in wanted and decays(group) != decays(wanted)
        ]
        for group, _before, wanted in odd:
            group[key] = named.own(wanted)
        try:
            yield
        except BaseException:
            for group, before, _wanted in odd:
                group[key] = before
            raise

    def state_dict(self) -> dict[str, Any]:
        """The state of an ordinary optimizer: plain tensors and values.

        Where the program is shared out it holds this rank's cores only, and loads only there.
        torch.distributed.checkpoint.state_dict keeps its "state" and "param_groups" alone, which
        do not load again: use `opdf.save_checkpoint`.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state = pack_state(self)
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state)
            state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave; load the student's own weights too, before or after.

        Raises:
            InputError: The state is of another student, plan or rank; nothing is changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise InputError(
                f"load_state_dict got a {type(state_dict).__name__}, wanted what state_dict() "
                "gave; read a file with torch.load(path, weights_only=True) first"
            )
        state = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state)
            state = state if changed is None else changed
        self.load_state_by_name(*unpack_state(self, state))
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse pickle and deepcopy: a copy would step cores that write to nobody's weights.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "an Overparam is bound to the weights of one module and cannot be pickled or copied, "
            "wanted its state_dict(); build another one for the copy of the student, and load the "
            "state there"
        )


def _load(
    optimizer: NamedState,
    states: Mapping[str, named.StateDict],
    fingerprints: Mapping[str, list[int]],
    groups: list[dict[str, Any]],
    class_state: named.StateDict | None,
) -> None:
    """Check everything, then change the optimizer; see `SavedState.load_state_by_name`."""
    _require_groups(optimizer, groups)
    _require_class_state(optimizer, class_state)
    program = optimizer.program
    cores: dict[str, Tensor] = {}
    for key in (key for unit in optimizer.units() for key in unit.keys):
        cores.update(_require_cores(optimizer, key, states.get(key, {})))
    held = set(optimizer.held())
    for key in (direct.key for direct in program.direct if direct.key in held):
        cores.update(_require_cores(optimizer, key, states.get(key, {})))
    if optimizer.alignment is not None:
        optimizer.alignment.require_state(states)
    for unit in optimizer.units():
        if not named.joins(unit, states):
            take_apart(program, unit, optimizer.inner)
    inner: dict[Tensor, named.StateDict] = {}
    for unit in optimizer.units():
        inner.update(named.core_states(unit, states))
    parameters = dict(program.module.named_parameters(remove_duplicate=False))
    matched = {entry.key for entry in program.entries}
    for name in optimizer.owned_names():
        if name not in matched and states.get(name):
            inner[parameters[name]] = {
                # What a method without cores keeps was read above.
                key: named.own(value)
                for key, value in states[name].items()
                if not key.startswith("cores.")
            }
    rest = class_state["rest"] if class_state is not None else None
    state = joined_state(optimizer.inner, inner, rest, optimizer.labels())
    options = optimizer.read_options(groups)
    # All is read; from here on it changes. What the class itself refuses it refuses first.
    if state is not None:
        optimizer.inner.load_state_dict(state)
    program.fill(cores)
    if optimizer.alignment is not None:
        optimizer.alignment.load_state_by_name(states)
    optimizer.put_options(*options)
    lay_alike(optimizer.inner)  # The options say whether that must be.
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


def _require_class_state(optimizer: NamedState, state: named.StateDict | None) -> None:
    labels, inner = optimizer.labels(), optimizer.inner
    require_form(inner, state["rest"] if state is not None else None, labels)
    if state is not None and bound(state["rest"]):
        require_layout(state["layout"], optimizer.layout(), type(inner).__name__)


def _require_cores(optimizer: NamedState, key: str, state: named.StateDict) -> dict[str, Tensor]:
    entry = next(e for e in optimizer.plan.entries if e.key == key)
    wanted = [tuple(core.shape) for core in optimizer.program.cores(key)]
    places = sorted(int(name[6:]) for name in state if re.fullmatch(r"cores\.\d+", name))
    found = [tuple(state[f"cores.{place}"].shape) for place in places]
    if found != wanted or places != list(range(len(wanted))):
        raise InputError(
            f"the state holds cores of shapes {found} for {key!r}, wanted {wanted}; "
            "build the optimizer with the plan of that state"
        )
    return {name: state[f"cores.{place}"] for place, name in enumerate(entry.core_names)}
