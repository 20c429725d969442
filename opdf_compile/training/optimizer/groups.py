"""Param groups: what the user gives holds W; what the wrapped optimizer steps holds the cores.

    outer group {W_1, W_2, b; lr, weight_decay, ..}  ->  inner {b; lr, weight_decay, ..}
                                                         inner {cores of W_1, W_2; lr, 0, ..}
                                                         inner {cores with a rate r; r lr, 0, ..}

The outer groups show the options as the wrapped optimizer has them. Schedulers and users change
those, and what they changed since the last look is copied inwards before each step; what the
wrapped optimizer changes by itself (a step size that it estimates, the mode that it is in) is
copied outwards after it, and never overwritten.

Some classes keep a figure for each group, or go by the places in it. Where nothing decays there is
no need for two: such a group is one, {b, cores of W_1, W_2; lr, 0, ..}.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from opdf_compile.errors import InputError
from opdf_compile.training.hoisted.binding import is_sharded
from opdf_compile.training.optimizer.looks import Look, put
from opdf_compile.training.optimizer.weight_state import equal, own

Group = dict[str, Any]
_OWN = ("params", "param_names")
# Parameters of one inner group, and its options that are the outer ones times a factor.
Laid = tuple[list[Tensor], dict[str, float]]


def outer_groups(given: Any) -> list[Group]:
    """What a torch optimizer takes as its first argument, or a module, as a list of groups.

    Raises:
        InputError: It is none of those, or holds nothing.
    """
    if isinstance(given, nn.Module):
        return [{"params": list(given.parameters())}]
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise InputError(
            f"Overparam got a {type(given).__name__}, wanted a module, its parameters or its param "
            "groups"
        )
    items = list(given)
    if not items:
        raise InputError("Overparam got no parameters, wanted a module or its param groups")
    if not all(isinstance(item, dict) for item in items):
        return [{"params": items}]
    return [{**item, "params": _listed(item)} for item in items]


def _listed(group: Group) -> list[Any]:
    if "params" not in group:
        raise InputError(
            f"a param group has the keys {list(group)}, wanted 'params' among them; "
            'give {"params": [..], "lr": ..}'
        )
    params = group["params"]
    return [params] if isinstance(params, Tensor) else list(params)


def tensors(group: Mapping[str, Any]) -> list[Tensor]:
    """The parameters of a group; torch takes (name, parameter) pairs too."""
    return [item[1] if isinstance(item, tuple) else item for item in group["params"]]


def options_of(group: Mapping[str, Any]) -> Group:
    """A group without its parameters."""
    return {key: value for key, value in group.items() if key not in _OWN}


def decays(group: Mapping[str, Any]) -> bool:
    """Whether a group has a weight decay other than 0."""
    return bool(float(group.get("weight_decay", 0)))


class Links:
    """The inner groups of each outer group.

    Args:
        outer: The user's groups.
        cores: For each outer group the cores of its matched weights.
        matched: Ids of the matched weights.
        split: Whether the cores get groups of their own, without the weight decay of W.
        whole: Places of outer groups that are not split all the same, because nothing decays in
            them.
        rates: By id of a core the factor of its learning rate, where it is not 1.
        shares: By id of a core the factor of the weight decay that the wrapped optimizer gives it;
            0 where it is left out.
    """

    def __init__(
        self,
        outer: list[Group],
        cores: list[list[nn.Parameter]],
        matched: set[int],
        *,
        split: bool,
        whole: Collection[int] = (),
        rates: Mapping[int, float] | None = None,
        shares: Mapping[int, float] | None = None,
    ) -> None:
        """Lay out the inner groups."""
        self._rate_of = dict(rates or {})
        self._share_of = dict(shares or {})
        self.inner: list[Group] = []
        self.places: list[list[int]] = []
        # By place, the options that are the outer ones times a factor.
        self._factors: dict[int, dict[str, float]] = {}
        # By outer group, the options as last seen there, and as last seen where they come from.
        self._seen: list[dict[str, Look]] = []
        self._shown: list[dict[str, Look]] = []
        for place, (group, stepped) in enumerate(zip(outer, cores, strict=True)):
            rest = [p for p in tensors(group) if id(p) not in matched]
            self._add(group, rest, stepped, split and place not in whole)

    def _add(
        self, group: Group, rest: list[Tensor], stepped: list[nn.Parameter], split: bool
    ) -> None:
        """Lay out one more outer group."""
        options = options_of(group)
        usual, scaled = self._by_factors(stepped, split)
        # Cores are plain tensors; torch's foreach and fused steps take no DTensor beside those.
        apart = split or any(map(is_sharded, rest))
        members: list[Laid] = [(rest, {}), usual]
        if not apart:
            members = [([*rest, *usual[0]], usual[1])]
        laid = [(params, factors) for params, factors in (*members, *scaled) if params]
        made: list[Group] = [{**options, "params": params} for params, _factors in laid]
        places = range(len(self.inner), len(self.inner) + len(made))
        for place, inner, (_params, factors) in zip(places, made, laid, strict=True):
            self._factors[place] = factors
            self._scale(place, group, inner)
        self.places.append(list(places))
        self._seen.append({})
        self._shown.append({})
        self.inner.extend(made)

    def _by_factors(self, cores: list[nn.Parameter], split: bool) -> tuple[Laid, list[Laid]]:
        """The cores by what their options are times: those with the usual rate, and the others."""
        bare = {"weight_decay": 0.0} if split else {}
        shares = self._share_of if split else {}
        found: dict[tuple[float, float, bool], list[Tensor]] = {(1.0, 0.0, False): []}
        for core in cores:
            rate, share = self._rate_of.get(id(core), 1.0), shares.get(id(core), 0.0)
            # A weight that is stepped itself may be sharded, which no core is.
            found.setdefault((rate, share, is_sharded(core)), []).append(core)
        laid: list[Laid] = []
        for (rate, share, _sharded), params in found.items():
            # The class decays by its own rate too: over it, what is left is the share of W's decay.
            factors = dict(bare) if share == 0.0 else {"weight_decay": share / rate}
            laid.append((params, factors if rate == 1.0 else {"lr": rate, **factors}))
        return laid[0], laid[1:]

    def _scale(self, place: int, outer: Group, inner: Group) -> None:
        for key, factor in self._factors[place].items():
            if factor == 0.0:
                inner[key] = 0.0
            elif outer.get(key) is not None:
                inner[key] = outer[key] * factor

    def take_over(self, place: int, other: Links, before: int) -> None:
        """Know of an outer group what another layout knew: its options go on as they were.

        Copies, because a group may have been split in two, and each is looked at by itself.
        """
        self._seen[place] = dict(other._seen[before])
        self._shown[place] = dict(other._shown[before])

    def push(self, outer: list[Group], inner: list[Group], *, apart: bool = False) -> None:
        """Copy the options that the user changed since the last call inwards.

        Args:
            outer: The user's groups.
            inner: The wrapped optimizer's groups.
            apart: Give each inner group tensors of its own: among the options are some that the
                wrapped optimizer writes to, such as a count of steps, once for each of its groups.
        """
        for index, (group, places) in enumerate(zip(outer, self.places, strict=True)):
            seen, shown = self._seen[index], self._shown[index]
            for key, value in group.items():
                if key in _OWN or not self._stale(key, value, seen, places):
                    continue
                before = seen.get(key)
                seen[key] = Look.at(value)
                for place in places:
                    present = inner[place].get(key)
                    fresh = apart or (before is not None and before.value is present)
                    self._put(place, inner[place], key, own(value) if apart else value, fresh=fresh)
                if (source := self._source(key, places, inner)) is not None:
                    shown[key] = Look.at(inner[source][key])

    def _stale(self, key: str, value: Any, seen: Mapping[str, Look], places: list[int]) -> bool:
        if key not in seen or seen[key].changed(value):
            return True
        # A scheduler may write into a tensor by ways that do not count, and a product is a copy.
        return isinstance(value, Tensor) and any(key in self._factors[p] for p in places)

    def _put(self, place: int, inner: Group, key: str, value: Any, *, fresh: bool = False) -> None:
        factor = self._factors[place].get(key)
        if factor is None or value is None:
            put(inner, key, value, fresh=fresh)
        elif factor != 0.0:
            put(inner, key, value * factor, fresh=fresh)

    def _source(self, key: str, places: list[int], inner: list[Group]) -> int | None:
        """The inner group that an outer option is shown from: one that has it as it is."""
        plain = (p for p in places if key in inner[p] and key not in self._factors[p])
        return next(plain, None)

    def show(
        self, outer: list[Group], inner: list[Group], only: Collection[int] | None = None
    ) -> None:
        """Copy outwards what the wrapped optimizer changed by itself since the last call.

        The first call, after it was built, shows the options that it made of those given.

        Only the outer groups at the places `only` are looked at, all if None.
        """
        for index in range(len(outer)) if only is None else only:
            group, places = outer[index], self.places[index]
            seen, shown = self._seen[index], self._shown[index]
            for key in dict.fromkeys(key for p in places for key in inner[p] if key not in _OWN):
                source = self._source(key, places, inner)
                if source is None:
                    continue
                value = inner[source][key]
                if key in shown and not shown[key].changed(value):
                    continue
                shown[key] = Look.at(value)
                if key not in group or not equal(group[key], value):
                    group[key] = own(value)
                seen[key] = Look.at(group[key])

    def adopt(
        self, outer: list[Group], inner: list[Group], only: Collection[int] | None = None
    ) -> None:
        """Show the options that the wrapped optimizer made of those given, once it was built.

        From then on only what changes is copied, either way.
        """
        self.show(outer, inner, only)
        for index in range(len(outer)) if only is None else only:
            group, places = outer[index], self.places[index]
            for key in group.keys() - self._seen[index].keys() - set(_OWN):
                self._seen[index][key] = Look.at(group[key])
            for place in places:
                for key in self._factors[place].keys() & group.keys():
                    self._put(place, inner[place], key, group[key])

    def push_all(
        self, outer: list[Group], inner: list[Group], estimated: list[list[Group]]
    ) -> None:
        """Copy every option inwards, and then what the wrapped optimizer had changed by itself.

        Args:
            outer: The user's groups.
            inner: The wrapped optimizer's groups.
            estimated: What `estimated` gave when the state was saved; left out where the groups
                were laid out otherwise then, as on another number of ranks.
        """
        # Forgotten, so that every option counts as changed.
        self._seen = [{} for _ in self._seen]
        self.push(outer, inner, apart=True)
        for places, saved in zip(self.places, estimated, strict=True):
            if len(places) == len(saved):
                for place, options in zip(places, saved, strict=True):
                    inner[place].update(options)

    def estimated(self, outer: list[Group], inner: list[Group]) -> list[list[Group]]:
        """For each outer group the options that its inner groups have of their own.

        Some optimizers keep there what they estimate, such as a step size. What an inner group
        only was given is left out: it must follow the outer group after a load too.
        """
        return [
            [
                {
                    key: value
                    for key, value in inner[place].items()
                    if key not in _OWN
                    and not (key in group and equal(group[key], value))
                    # The layout's own: the zero of cores that decay with W, the scaled rates.
                    and key not in self._factors[place]
                }
                for place in places
            ]
            for group, places in zip(outer, self.places, strict=True)
        ]
