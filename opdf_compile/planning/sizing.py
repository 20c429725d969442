"""Choose a spec for every weight: by number of cores, by scale, or by overhead.

cores     every weight gets the usual spec of its rule with so many cores.
scale     sum of added parameters = (S - 1) x deployed. Weights are taken from the largest down;
          what one weight misses is carried to the next, so the total is met within one small step.
overhead  compose FLOPs per optimizer step <= (R - 1) x FLOPs of the student's step on the example
          batch. The largest common ratio of added to own parameters that fits is taken.

Branches beside convolutions, and rules that say their own number of cores, leave nothing to choose:
they count first, and the other weights get what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from opdf_compile.errors import PlanError
from opdf_compile.graph import Match
from opdf_compile.parametrizations import Spec
from opdf_compile.planning.rules import Rule
from opdf_compile.planning.site_entry import SiteEntry
from opdf_compile.tensor import Cost

Asked = Sequence[tuple[Match, Rule]]
Options = dict[str, list[tuple[Cost, Spec]]]


def sized(
    asked: Asked, request: dict[str, Any], flops: int, sites: Sequence[SiteEntry] = ()
) -> dict[str, Spec]:
    """The spec of every weight, by its key; a weight that an overhead leaves out has none.

    Args:
        asked: The weights and their rules.
        request: What is asked for: "scale" or "overhead", else the cores of the rules.
        flops: Of the student's step; 0 where they are not known.
        sites: What is planned already.

    Raises:
        PlanError: It cannot be met.
    """
    if not asked:
        return {}  # No request can be wrong for them: `plan` says that there are none.
    if "scale" in request:
        return dict(_by_scale(asked, float(request["scale"]), sites))
    if "overhead" not in request:
        return {found.key: rule.proposed(found) for found, rule in asked}
    if not flops:
        raise PlanError(
            "overhead needs the FLOPs of the student's step, found a module without a graph; "
            "pass opdf.trace(model, args) if a graph can hold it, or ask for cores= or scale="
        )
    return dict(_by_overhead(asked, float(request["overhead"]), flops, sites))


def _options(asked: Asked) -> Options:
    return {
        found.key: [(rule.by.cost(s), s) for s in rule.candidates(found)] for found, rule in asked
    }


def _by_scale(asked: Asked, scale: float, sites: Sequence[SiteEntry]) -> Iterator[tuple[str, Spec]]:
    options = {
        key: [(cost.added, spec) for cost, spec in rows] for key, rows in _options(asked).items()
    }
    fixed, beside = sum(site.added for site in sites), sum(site.deployed for site in sites)
    deployed = beside + sum(found.parameters for found, _ in asked)
    most = 1 + (fixed + sum(max(a for a, _ in o) for o in options.values())) / deployed
    least = 1 + (fixed + sum(min(a for a, _ in o) for o in options.values())) / deployed
    # Half a per cent of slack: a request for the printed maximum is not refused for its rounding.
    if not least * 0.995 <= scale <= most * 1.005:
        if least == most:
            raise PlanError(
                f"scale {scale:g} is asked for, and what these weights become leaves no choice: "
                f"it has scale {most:.2f}; leave scale out, or take a parametrization with more or "
                "fewer cores, such as mpo"
            )
        raise PlanError(
            f"scale {scale:g} cannot be reached, these weights allow {least:.2f} to {most:.2f}; "
            "ask for a scale between them"
        )
    # What a mixed plan cannot choose comes first, and the others make up for it.
    mixed = len({rule.glob for _, rule in asked}) > 1
    order = sorted(
        (found for found, _ in asked),
        key=lambda m: (mixed and len(options[m.key]) > 1, -m.parameters, m.key),
    )
    carry = (scale - 1) * beside - fixed
    for found in order:
        target = (scale - 1) * found.parameters + carry
        added, spec = min(options[found.key], key=lambda option: abs(option[0] - target))
        carry = target - added
        yield found.key, spec


def _by_overhead(
    asked: Asked, overhead: float, flops: int, sites: Sequence[SiteEntry]
) -> Iterator[tuple[str, Spec]]:
    budget = (overhead - 1) * flops - sum(site.cost.step_flops for site in sites)
    fixed = [pair for pair in asked if pair[1].own_cores is not None]
    free = [pair for pair in asked if pair[1].own_cores is None]
    for key, rows in _options(fixed).items():
        ((cost, spec),) = rows
        budget -= cost.step_flops
        yield key, spec
    if budget < 0:
        raise PlanError(
            f"overhead {overhead:g} cannot be met: branches, and rules that say their own number "
            f"of cores, alone cost {overhead - budget / flops:.4g}; ask for more, or leave some out"
        )
    sizes = {found.key: found.parameters for found, _ in free}
    options = {
        key: [(cost.added / sizes[key], cost.step_flops, spec) for cost, spec in rows]
        for key, rows in _options(free).items()
    }
    best = _highest_ratio(options, budget)
    # Of the options up to this ratio each weight takes the one that adds most.
    for key, choices in options.items():
        fitting = [choice for choice in choices if choice[0] <= best]
        if fitting:
            yield key, max(fitting, key=lambda choice: choice[0])[2]


def _highest_ratio(options: dict[str, list[tuple[float, int, Spec]]], budget: float) -> float:
    """The largest common ratio whose FLOPs fit; -inf where none does.

    One walk upwards through all options, the sum of FLOPs kept up to date: a model of many
    different layers has as many ratios as options.
    """
    steps = sorted(
        ((ratio, flops, key) for key, rows in options.items() for ratio, flops, _spec in rows),
        key=lambda step: step[0],
    )
    taken: dict[str, int] = {}
    total, best = 0, float("-inf")
    for place, (ratio, flops, key) in enumerate(steps):
        total += flops - taken.get(key, 0)
        taken[key] = flops
        last = place + 1 == len(steps) or steps[place + 1][0] > ratio
        if last and total <= budget:
            best = ratio
    return best
