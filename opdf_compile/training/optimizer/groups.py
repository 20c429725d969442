"""Param groups: what the user gives holds W; what the wrapped optimizer steps holds the cores.

    outer group {W_1, W_2, b; lr, weight_decay, ..}  ->  inner {b; lr, weight_decay, ..}
                                                         inner {cores of W_1, W_2; lr, 0, ..}
                                                         inner {cores with a rate r; r lr, 0, ..}

Schedulers and users change the outer options; they are copied inwards before each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from opdf_compile.errors import InputError
from opdf_compile.training.hoisted.binding import is_sharded
from opdf_compile.training.optimizer.state import equal

Group = dict[str, Any]
_OWN = ("params", "param_names")


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


class Links:
    """The inner groups of each outer group.

    Args:
        outer: The user's groups.
        cores: For each outer group the cores of its matched weights.
        matched: Ids of the matched weights.
        split: Whether the cores get a group of their own, without weight decay.
        rates: By id of a core the factor of its learning rate, where it is not 1.
    """

    def __init__(
        self,
        outer: list[Group],
        cores: list[list[nn.Parameter]],
        matched: set[int],
        *,
        split: bool,
        rates: Mapping[int, float] | None = None,
    ) -> None:
        """Lay out the inner groups."""
        self.split = split
        self._rate_of = dict(rates or {})
        self._rates: dict[int, float] = {}
        self.inner: list[Group] = []
        self.places: list[list[int]] = []
        self._bare: set[int] = set()
        self._seen: list[Group] = []
        for group, stepped in zip(outer, cores, strict=True):
            rest = [p for p in tensors(group) if id(p) not in matched]
            self.add(group, rest, stepped)

    def add(self, group: Group, rest: list[Tensor], stepped: list[nn.Parameter]) -> list[Group]:
        """Lay out one more outer group; returns its inner groups."""
        options = {key: value for key, value in group.items() if key not in _OWN}
        usual = [core for core in stepped if id(core) not in self._rate_of]
        # Cores are plain tensors; torch's foreach and fused steps take no DTensor beside those.
        apart = self.split or is_sharded(rest)
        members = [rest, usual] if apart else [[*rest, *usual]]
        own = self._by_rate(stepped)
        made: list[Group] = [{**options, "params": p} for p in [*members, *own.values()] if p]
        first = len(self.inner)
        after = first + len(made)
        self._rates.update(zip(range(after - len(own), after), own, strict=True))
        if self.split:
            bare = range(first + bool(rest), after)
            self._bare.update(bare)
            for place in bare:
                made[place - first]["weight_decay"] = 0.0
        self.places.append(list(range(len(self.inner), len(self.inner) + len(made))))
        self._seen.append({})
        self.inner.extend(made)
        return made

    def _by_rate(self, cores: list[nn.Parameter]) -> dict[float, list[nn.Parameter]]:
        found: dict[float, list[nn.Parameter]] = {}
        for core in cores:
            if id(core) in self._rate_of:
                found.setdefault(self._rate_of[id(core)], []).append(core)
        return found

    def part_sharded(self, inner: Optimizer) -> None:
        """Give parameters that are sharded now a group of their own where they are among cores."""
        for places in self.places:
            for group in [inner.param_groups[place] for place in places]:
                sharded = [p for p in group["params"] if is_sharded([p])]
                if not 0 < len(sharded) < len(group["params"]):
                    continue
                group["params"][:] = [p for p in group["params"] if not is_sharded([p])]
                inner.add_param_group({**group, "params": sharded})
                places.insert(0, len(self.inner))  # As they are laid out when they come sharded.
                self.inner.append(inner.param_groups[-1])

    def push(self, outer: list[Group], inner: list[Group]) -> None:
        """Copy the options that changed since the last call from the outer groups inwards."""
        for group, places, seen in zip(outer, self.places, self._seen, strict=True):
            for key, value in group.items():
                if key in _OWN:
                    continue
                scaled = key == "lr" and not self._rates.keys().isdisjoint(places)
                # A scheduler may write into a tensor, and a product of it is a copy.
                stale = scaled and isinstance(value, Tensor)
                if not stale and key in seen and _same(seen[key], value):
                    continue
                seen[key] = value
                for place in places:
                    if key == "lr" and place in self._rates:
                        inner[place][key] = value * self._rates[place]
                    elif not (key == "weight_decay" and place in self._bare):
                        inner[place][key] = value

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
        self._seen = [{} for _ in self._seen]
        self.push(outer, inner)
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
                    and not (key == "weight_decay" and place in self._bare)
                    and not (key == "lr" and place in self._rates)
                }
                for place in places
            ]
            for group, places in zip(outer, self.places, strict=True)
        ]


def _same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if isinstance(old, Tensor) or isinstance(new, Tensor):
        return False
    return bool(old == new)
