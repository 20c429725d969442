"""Param groups that others have set or edited: what is there is what is stepped.

    outer groups, edited  ->  a new layout  ->  the inner groups that hold most of it, and new ones

A trainer may assign `param_groups` (Lightning's BackboneFinetuning does when it resumes), take a
weight out, or move it to another group. The inner groups go after them, found by the parameters
that they hold: each keeps what the wrapped optimizer wrote into it, and its list of parameters
stays the same object, because some optimizers hold it elsewhere too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from opdf_compile.errors import InputError
from opdf_compile.training.hoisted.direct import Direct
from opdf_compile.training.hoisted.unit import Unit
from opdf_compile.training.optimizer.groups import Group, Links
from opdf_compile.training.optimizer.weight_state import own

# For each planned weight the place of its outer group; None where no group holds it.
GroupPlaces = dict[str, int | None]


def uneven_places(units: Sequence[Unit], places: GroupPlaces) -> list[Unit]:
    """The batches whose members lie in several groups now, or of which some lie in none.

    Raises:
        InputError: Weights that share cores do; their cores cannot go two ways.
    """
    odd = [unit for unit in units if len({places[key] for key in unit.keys}) > 1]
    for unit in odd:
        if not unit.batched:
            raise InputError(
                f"{unit.keys[0]!r} and {unit.keys[1]!r} share cores and lie in different param "
                "groups, or one of them in none, wanted one group for both; put them together, or "
                "plan them with cores of their own"
            )
    return odd


def stepped(
    groups: Sequence[Group], units: Sequence[Unit], direct: Sequence[Direct], places: GroupPlaces
) -> list[list[nn.Parameter]]:
    """The cores that each outer group stands for, and the planned weights that have none."""
    found: list[list[nn.Parameter]] = [[] for _ in groups]
    for unit in units:
        place = places[unit.keys[0]]
        if place is not None:
            found[place].extend(unit.trained)
    for weight in direct:
        place = places[weight.key]
        if place is not None:
            found[place].append(weight.parameter)
    return found


def move(inner: Optimizer, old: Links, new: Links) -> list[int]:
    """Bring the groups of a wrapped optimizer into a new layout.

    Args:
        inner: Its groups are changed in place.
        old: The layout that they have.
        new: The layout that they get; it takes over what was seen of the groups that go on.

    Returns:
        The places of the outer groups that are new altogether.
    """
    present = list(inner.param_groups)
    before = [list(group["params"]) for group in present]
    home = {id(p): place for place, params in enumerate(before) for p in params}
    claims = _claims(new.inner, home)
    # A class may refuse a group that is added; then its lists are filled as they were.
    try:
        new.inner[:] = _moved(inner, new.inner, present, claims, home)
    except Exception:
        for group, params in zip(present, before, strict=True):
            group["params"][:] = params
        inner.param_groups[:] = present
        raise
    inner.param_groups[:] = new.inner
    # A new outer group goes on from an old one where all of its inner groups come from that one.
    of_place = {place: outer for outer, places in enumerate(old.places) for place in places}
    for outer, places in enumerate(new.places):
        seen = {of_place[claims[place]] for place in places if place in claims}
        if len(seen) == 1:
            new.take_over(outer, old, seen.pop())
    return [outer for outer, places in enumerate(new.places) if claims.keys().isdisjoint(places)]


def _moved(
    inner: Optimizer,
    wanted: Sequence[Group],
    present: Sequence[Group],
    claims: Mapping[int, int],
    home: Mapping[int, int],
) -> list[Group]:
    for place, source in claims.items():
        present[source]["params"][:] = wanted[place]["params"]
    # What nobody claims goes first: no parameter may be in two groups when one is added.
    inner.param_groups[:] = [present[source] for source in claims.values()]
    moved: list[Group] = []
    for place, group in enumerate(wanted):
        if place in claims:
            moved.append(present[claims[place]])
            continue
        came_from = home.get(id(group["params"][0]))
        # What the class keeps by group goes along with the parameters that leave it; a copy,
        # because it may be a count in a tensor that it moves on once for each group.
        before = present[came_from] if came_from is not None else {}
        options = {k: own(v) for k, v in {**before, **group}.items() if k != "params"}
        inner.add_param_group({**options, "params": group["params"]})
        moved.append(inner.param_groups[-1])
    return moved


def _claims(wanted: Sequence[Group], home: dict[int, int]) -> dict[int, int]:
    """For each new inner group the old one that holds most of it, each of these once."""
    shares: list[tuple[int, int, int]] = []
    for place, group in enumerate(wanted):
        found = [home[id(p)] for p in group["params"] if id(p) in home]
        shares.extend((-found.count(source), place, source) for source in set(found))
    claims: dict[int, int] = {}
    # The largest share first, then by place: every rank must come to the same layout.
    for _count, place, source in sorted(shares):
        if place not in claims and source not in claims.values():
            claims[place] = source
    return claims
