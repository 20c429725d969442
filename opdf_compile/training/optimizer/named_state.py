"""The state of an Overparam by the student's own parameter names, as it is gathered.

matched weight W:   {"cores.k": T_k, "cores.k.exp_avg": .., .., and what an alignment keeps}
other parameter:    what the wrapped optimizer keeps
  planned, no cores:  that, and as "cores.k" what its method keeps
"""

from __future__ import annotations

from torch import Tensor

from opdf_compile.errors import InputError
from opdf_compile.training.optimizer import weight_state as named
from opdf_compile.training.optimizer.followed import Followed
from opdf_compile.training.optimizer.groups import Group
from opdf_compile.training.optimizer.inner_state import (
    InnerState,
    bound,
    split_state,
)
from opdf_compile.training.optimizer.plain_reading import PlainReader
from opdf_compile.training.optimizer.plain_values import PlainWriter, written_options


class NamedState(Followed):
    """The part of an Overparam that names what it keeps; see there for its attributes."""

    def owned_names(self) -> tuple[str, ...]:
        """Names of the parameters whose state this rank holds."""
        self._follow_parameters()
        matched, held = {entry.key for entry in self.program.entries}, self.held()
        mine = (key for key in self.program.owned() if key in held)
        listed = (self._name(p) for group in self.param_groups for p in group["params"])
        return (*mine, *(name for name in listed if name not in matched))

    def _name(self, parameter: Tensor) -> str:
        name = self._names.get(parameter)
        if name is None:
            raise InputError(
                f"a param group holds a tensor of shape {tuple(parameter.shape)} that was put "
                "there by hand or has replaced a parameter, wanted those that it was built "
                "with; use add_param_group, and build after whatever replaces parameters"
            )
        return name

    def group_options(self) -> list[Group]:
        """The param groups with names in place of parameters.

        "inner" holds the options of the wrapped optimizer's own groups: some optimizers keep there
        what they estimate, such as a step size.
        """
        self._follow_parameters()
        # A scheduler may have moved the options since the last step; the inner groups follow.
        self._links.push(self.param_groups, self.inner.param_groups)
        inner = self._links.estimated(self.param_groups, self._taken().groups)
        writer = PlainWriter(type(self.inner).__name__, settings=True)
        return [
            {
                **written_options(group),
                "params": [self._name(p) for p in group["params"]],
                "inner": [writer.write(options, "param_groups[..]") for options in estimated],
            }
            for group, estimated in zip(self.param_groups, inner, strict=True)
        ]

    def read_options(self, saved: list[Group]) -> tuple[list[Group], list[list[Group]]]:
        """The options of the groups, and what the wrapped optimizer had in its own beside them.

        Raises:
            InputError: A setting is another one here; nothing is changed.
        """
        reader = PlainReader()
        options = [
            {
                # A copy: a learning rate may be a tensor, which schedulers write to.
                key: named.own(reader.read(value, group.get(key)))
                for key, value in options.items()
                if key not in ("params", "inner")
            }
            for options, group in zip(saved, self.param_groups, strict=True)
        ]
        present = self.inner.param_groups
        own = [
            [reader.read(named.own(o), present[p]) for o, p in zip(inner, places, strict=True)]
            if len(inner := saved[index].get("inner", [])) == len(places)
            else []  # Laid out otherwise then, as on another number of ranks.
            for index, places in enumerate(self._links.places)
        ]
        return options, own

    def put_options(self, options: list[Group], own: list[list[Group]]) -> None:
        """Take over what `read_options` gave."""
        for group, read in zip(self.param_groups, options, strict=True):
            group.update(read)
        self._links.push_all(self.param_groups, self.inner.param_groups, own)

    def class_state(self) -> named.StateDict:
        """What the wrapped optimizer keeps beside its parameters' states, and their layout.

        Returns:
            "rest", plain values that only the class understands, and "layout", the order of the
            parameters that they are for; empty where they speak of none.
        """
        self._follow_parameters()
        rest = self._taken().rest
        return {"layout": self.layout() if bound(rest) else [], "rest": rest}

    def layout(self) -> list[list[str]]:
        """The names of the parameters that the wrapped optimizer steps here, group by group."""
        self._follow_parameters()
        labels, groups = self.labels(), self.inner.param_groups
        return [[labels.get(id(p), "?") for p in group["params"]] for group in groups]

    def _taken(self) -> InnerState:
        return split_state(self.inner, self.labels())

    def fingerprints(self) -> dict[str, list[int]]:
        """The checksum of every matched weight as the last step left it."""
        return {key: value.tolist() for key, value in self.program.checksums().items()}

    def state_by_name(self) -> dict[str, named.StateDict]:
        """Cores and optimizer state that this rank holds, by parameter name."""
        self._follow_parameters()
        states: dict[str, named.StateDict] = {}
        kept = self._taken().by_parameter
        for unit in self.units():
            states.update(named.weight_states(unit, kept))
        for name, more in (self.alignment.state_by_name() if self.alignment else {}).items():
            states.get(name, {}).update(more)
        matched = {entry.key for entry in self.program.entries}
        kept_of = {direct.key: direct.tensors() for direct in self.program.direct}
        for group in self.param_groups:
            for parameter in group["params"]:
                name = self._name(parameter)
                if name not in matched:
                    states[name] = dict(kept.get(parameter, {}))
                    own = enumerate(kept_of.get(name, ()))
                    states[name].update({f"cores.{place}": tensor for place, tensor in own})
        return states
