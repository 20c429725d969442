"""A plain optimizer as checkpoints see an Overparam: the same files for both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from opdf_compile.training import (
    PlainReader,
    StateDict,
    joined_state,
    own,
    split_state,
    written_options,
)


@dataclass(frozen=True)
class _NoProgram:
    """A student without cores."""

    module: nn.Module
    process_group: None = None


class PlainState:
    """What `save_checkpoint` needs of an optimizer, for one that knows no cores."""

    def __init__(self, optimizer: Optimizer, student: nn.Module) -> None:
        self.inner = optimizer
        self.program = _NoProgram(student)
        self._names = {id(p): name for name, p in student.named_parameters()}

    def owned_names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the groups."""
        return tuple(name for group in self.group_options() for name in group["params"])

    def state_by_name(self) -> dict[str, StateDict]:
        """What the optimizer keeps of each."""
        kept = split_state(self.inner, self._names).by_parameter
        return {
            self._names[id(p)]: dict(kept.get(p, {}))
            for group in self.inner.param_groups
            for p in group["params"]
        }

    def fingerprints(self) -> dict[str, list[int]]:
        """None: no weight is made of cores."""
        return {}

    def group_options(self) -> list[StateDict]:
        """The param groups with names in place of parameters."""
        return [
            {**written_options(group), "params": [self._names[id(p)] for p in group["params"]]}
            for group in self.inner.param_groups
        ]

    def class_state(self) -> StateDict:
        """What its class keeps beside that."""
        return {"layout": self.layout(), "rest": split_state(self.inner, self._names).rest}

    def layout(self) -> list[list[str]]:
        """None: a plain optimizer is the same on every rank."""
        return []

    def load_state_by_name(
        self,
        states: Mapping[str, StateDict],
        fingerprints: Mapping[str, list[int]],
        groups: list[StateDict],
        class_state: StateDict | None = None,
    ) -> None:
        """The inverse of the four."""
        held = {self._names[id(p)]: p for g in self.inner.param_groups for p in g["params"]}
        rest = class_state["rest"] if class_state is not None else None
        kept = {held[name]: own(kept) for name, kept in states.items()}
        state = joined_state(self.inner, kept, rest, self._names)
        if state is not None:
            self.inner.load_state_dict(state)
        for group, saved in zip(self.inner.param_groups, groups, strict=True):
            for key, value in own(saved).items():
                group[key] = (
                    group[key] if key == "params" else PlainReader().read(value, group.get(key))
                )
