"""The part of an Overparam that goes after what others do to its parameters and param groups.

Trainers replace Parameters (sharding), take groups out and put others in. Before each step, and
before a state is saved or loaded, the wrapped optimizer's groups are brought to what stands there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator

from torch import Tensor, nn
from torch.optim import Optimizer

from opdf_compile.errors import InputError
from opdf_compile.planning import Plan
from opdf_compile.training.hoisted.binding import reshard
from opdf_compile.training.hoisted.program import WeightProgram
from opdf_compile.training.hoisted.unit import Unit
from opdf_compile.training.optimizer import weight_state as named
from opdf_compile.training.optimizer.alignment import Alignment
from opdf_compile.training.optimizer.arguments import homes, require_own_parameter
from opdf_compile.training.optimizer.decay import shares_of
from opdf_compile.training.optimizer.decay_rule import DecayRule
from opdf_compile.training.optimizer.following import ParameterNames, hand_over, standing
from opdf_compile.training.optimizer.groups import Group, Links, decays, outer_groups, tensors
from opdf_compile.training.optimizer.inner_state import is_bound, labels_of, start_anew
from opdf_compile.training.optimizer.rates import core_rates
from opdf_compile.training.optimizer.regrouping import (
    GroupPlaces,
    move,
    stepped,
    uneven_places,
)
from opdf_compile.training.optimizer.step_facts import StepFacts
from opdf_compile.training.optimizer.unbatching import take_apart


class Followed(Optimizer):
    """See Overparam for its attributes."""

    program: WeightProgram
    inner: Optimizer
    plan: Plan
    alignment: Alignment | None
    _links: Links
    _names: ParameterNames
    _mode: str | None = None
    _place_of: GroupPlaces
    _split: bool
    _rule: DecayRule
    facts: StepFacts
    _by_entry: bool
    _make: Callable[..., Optimizer]
    _aside: dict[Tensor, named.StateDict]
    # None until the optimizer is built.
    _laid: tuple[list[list[int]], frozenset[int]] | None = None

    def held(self) -> tuple[str, ...]:
        """Names of the planned weights that a param group holds; no others are stepped."""
        return tuple(key for key, place in self._place_of.items() if place is not None)

    def units(self) -> list[Unit]:
        """The units of those weights whose cores this rank holds."""
        held = set(self.held())
        return [unit for unit in self.program.units if unit.keys[0] in held]

    def absorb(self) -> tuple[str, ...]:
        """Take the weights as they are now; what the optimizer kept of their cores is dropped.

        Returns:
            Names of the weights that had changed.
        """
        self._follow_parameters()
        return self._made_anew(self.program.absorb)

    def seed(self) -> tuple[str, ...]:
        """Start along the first gradient, where a parametrization can (delta); see the program's.

        Between the first backward and the first step: later it starts anew from the weights as they
        are, and what the optimizer kept of their cores is dropped.

        Returns:
            Names of the weights that start anew.
        """
        self._follow_parameters()
        return self._made_anew(self.program.seed)

    def _made_anew(self, make: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """Make cores anew, and drop what the optimizer kept of them; names of their weights."""
        taken = make()
        changed = {entry.key for entry in self.program.entries}.intersection(taken)
        whole = bool(changed) and is_bound(self.inner, self.labels())
        with self._all_states():
            for unit in self.program.units if not whole else ():
                if unit.batched and 0 < len(changed & set(unit.keys)) < len(unit.keys):
                    take_apart(self.program, unit, self.inner)
            if self.alignment is not None:
                self.alignment.attach(self.program, changed)
            anew = [c for u in self.program.units if changed & set(u.keys) for c in u.storage]
            if changed:
                start_anew(self.inner, self._make, None if whole else anew)
        self._show_cores()
        return tuple(e.key for e in self.plan.entries if e.key in taken)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its parameters are stepped as they are, without cores.

        Planned weights that had been taken out of the groups go on with their cores.

        Raises:
            InputError: A parameter is none of the student's.
        """
        if self._laid is None:
            super().add_param_group(param_group)
            return  # One of the groups that the constructor laid out.
        self._follow_parameters()
        module = self.program.module
        (given,) = outer_groups([param_group])
        known = {id(p) for p in module.parameters()}
        for parameter in tensors(given):
            require_own_parameter(parameter, known, module)
        super().add_param_group(given)
        try:
            self._regroup()
        except Exception:
            self.param_groups.pop()
            raise

    def _keeps(self, units: Iterable[Unit]) -> bool:
        """Whether the wrapped optimizer keeps something for cores of these units."""
        return any(self.inner.state.get(core) for unit in units for core in unit.storage)

    def _laid_out(self, groups: list[Group], places: GroupPlaces, whole: Collection[int]) -> Links:
        units, module, direct = self.program.units, self.program.module, self.program.direct
        return Links(
            groups,
            stepped(groups, units, direct, places),
            {id(standing(module, entry.key)) for entry in self.plan.entries},
            split=self._split,
            whole=whole,
            rates=core_rates(units),
            shares=shares_of(units, direct) if self._rule is DecayRule.OWN else None,
        )

    def _whole(self, groups: list[Group]) -> frozenset[int]:
        """Places of the groups that need no second one for their cores; see `Links`.

        A class that goes entry by entry does not know the difference, and keeps the layout that it
        has when somebody lets its groups decay.
        """
        if not self._split or self._by_entry:
            return frozenset()
        return frozenset(place for place, group in enumerate(groups) if not decays(group))

    def _as_laid(self) -> tuple[list[list[int]], frozenset[int]]:
        """What tells whether parameters were moved since the last look."""
        members = [[id(parameter) for parameter in tensors(group)] for group in self.param_groups]
        return members, self._whole(self.param_groups)

    def _follow_parameters(self) -> None:
        """Go after what others have done to parameters and to param groups since the last call.

        Sharded weights are read whole, so all ranks come here together.
        """
        reshard(self.program.module)
        for group in self.param_groups:
            given = group["params"]
            if not isinstance(given, list):  # Made by hand: torch would have made a list of it.
                group["params"] = [given] if isinstance(given, Tensor) else list(given)
        if self._laid == self._as_laid():
            return  # What has replaced a Parameter is in a group, or is not followed.
        new = self._names.replaced(self.param_groups)
        if new:
            self._go_over(new)
        self._regroup()

    def _regroup(self) -> None:
        """Step what the param groups hold now, and nothing else.

        Raises:
            InputError: They hold a parameter twice, or one that is none of the student's; nothing
                is changed then.
        """
        groups, module = self.param_groups, self.program.module
        home = homes(groups, module)
        places = {e.key: home.get(id(standing(module, e.key))) for e in self.plan.entries}
        odd = uneven_places(self.program.units, places)
        for group in groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
        if odd:
            self._require_parts()
        with self._all_states():
            for unit in odd:
                take_apart(self.program, unit, self.inner)
            links = self._laid_out(groups, places, self._whole(groups))
            fresh = move(self.inner, self._links, links)
        self._links, self._place_of, self._laid = links, places, self._as_laid()
        links.adopt(groups, self.inner.param_groups, fresh)
        links.push(groups, self.inner.param_groups, apart=True)
        self._names.update(dict(module.named_parameters()))
        self._show_cores()

    @contextlib.contextmanager
    def _all_states(self) -> Iterator[None]:
        """With the states of what is in no group back in the wrapped optimizer.

        At other times they are put aside, because torch could not save them. What a class keeps
        for tensors of its own (masters in another dtype) always stays.
        """
        self.inner.state.update(self._aside)
        self._aside.clear()
        try:
            yield
        finally:
            state = self.inner.state
            held = {id(p) for group in self.inner.param_groups for p in group["params"]}
            cores = (core for unit in self.program.units for core in unit.storage)
            for parameter in (*cores, *self.program.module.parameters()):
                if id(parameter) not in held and parameter in state:
                    self._aside[parameter] = state.pop(parameter)

    def _go_over(self, new: dict[str, nn.Parameter]) -> None:
        """Go over to Parameters that have replaced others, as `prepare(model, optimizer)` does."""
        old = self._names.alive(new)
        # Of matched weights the wrapped optimizer holds cores, which stay.
        hand_over(self.inner, {parameter: new[name] for name, parameter in old.items()})
        for parameter in old.values():
            self.state.pop(parameter, None)
        self._names.update(new)
        changed = self.program.replaced({entry.key for entry in self.plan.entries} & new.keys())
        if changed and not self._keeps(self.program.units):
            # Only one rank may have had the weights that all of them have now.
            self.absorb()
        self._show_cores()

    def matched(self) -> list[nn.Parameter]:
        """The matched weights that have cores, as the student holds them now.

        Raises:
            InputError: One is not what the param groups hold: clipping and zero_grad would miss it.
        """
        found = self.program.matched()
        direct = {d.key: d.parameter for d in self.program.direct}
        # The names are looked up by weak references, which take longer than a small product.
        listed = set().union(*self._laid[0]) if self._laid is not None else set()
        for key, weight in {**found, **direct}.items():
            if id(weight) not in listed and weight not in self._names:
                raise InputError(
                    f"the student's {key!r} is another Parameter now, wanted the one that the "
                    "optimizer was built with and its groups hold; build it after whatever "
                    "replaces parameters (fully_shard, a conversion, an assignment)"
                )
        return list(found.values())

    def take_apart(self, unit: Unit) -> None:
        """Replace a batch by units of one weight each.

        Raises:
            InputError: The wrapped optimizer's state has no parts.
        """
        self._require_parts()
        take_apart(self.program, unit, self.inner)
        self._show_cores()

    def _require_parts(self) -> None:
        if is_bound(self.inner, self.labels()):
            raise InputError(
                f"batched=True stacks cores, only some weights of a stack go on here, and "
                f"{type(self.inner).__name__} keeps its state in a form of its own, which cannot "
                "be taken apart; leave batched out"
            )

    def labels(self) -> dict[int, str]:
        """What the parameters of the wrapped optimizer are called, by id."""
        held = [p for group in self.inner.param_groups for p in group["params"]]
        names = {id(p): name for p in held if (name := self._names.get(p)) is not None}
        return labels_of(self.program.units, names)

    def _show_cores(self) -> None:
        """Let `opt.state[W]` show the cores of W; they are views, not copies."""
        owned = dict(self.program.module.named_parameters(remove_duplicate=False))
        for unit in self.program.units:
            for key, state in named.weight_states(unit, {}).items():
                self.state[owned[key]] = state
