"""A plain optimizer as checkpoints see an Overparam: the same files for both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

State = dict[str, Any]


@dataclass(frozen=True)
class _NoProgram:
    """A student without cores."""

    module: nn.Module
    process_group: None = None


class PlainState:
    """What `save_checkpoint` needs of an optimizer, for one that knows no cores.

    Args:
        optimizer: A plain torch optimizer over parameters of the student.
        student: Gives them their names.
    """

    def __init__(self, optimizer: Optimizer, student: nn.Module) -> None:
        self.inner = optimizer
        self.program = _NoProgram(student)
        self._names = {id(p): name for name, p in student.named_parameters()}

    def owned_names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the groups."""
        return tuple(name for group in self.group_options() for name in group["params"])

    def state_by_name(self) -> dict[str, State]:
        """What the optimizer keeps of each."""
        return {
            self._names[id(p)]: dict(self.inner.state.get(p, {}))
            for group in self.inner.param_groups
            for p in group["params"]
        }

    def fingerprints(self) -> dict[str, list[int]]:
        """None: no weight is made of cores."""
        return {}

    def group_options(self) -> list[State]:
        """The param groups with names in place of parameters."""
        return [
            {**group, "params": [self._names[id(p)] for p in group["params"]]}
            for group in self.inner.param_groups
        ]

    def load_state_by_name(
        self,
        states: Mapping[str, State],
        fingerprints: Mapping[str, list[int]],
        groups: list[State],
    ) -> None:
        """The inverse of the three."""
        places = {name: place for place, name in enumerate(self.owned_names())}
        self.inner.load_state_dict(
            {
                "state": {places[name]: dict(kept) for name, kept in states.items() if kept},
                "param_groups": [
                    {**group, "params": [places[name] for name in group["params"]]}
                    for group in groups
                ],
            }
        )
