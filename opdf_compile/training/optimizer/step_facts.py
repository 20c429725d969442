"""What methods without cores must know of an optimizer class, found out on throwaway instances.

move(F o g) = F o move(g)    entry by entry, F of ones and fours     in proportion (SGD)
move(F o g) =     move(g)                                            size-free (AdamW)

a step of less than 1e-4 lr                                          lr is no step size
a copy of the parameter among the state                              a second point (schedule-free)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.errors import InputError
from opdf_compile.parametrizations import MetricParametrization, Scaling
from opdf_compile.planning import Plan, PlanEntry
from opdf_compile.training.optimizer.arguments import Maker, class_name
from opdf_compile.training.optimizer.decay_rule import shadows
from opdf_compile.training.optimizer.groups import Group
from opdf_compile.training.optimizer.trials import after_steps, kinds_of, trial_group

_RATE = 2.0**-4
# In the first steps some only fill their state, and some go in proportion before they go size-free
# (RAdam for five steps); what holds early and late is taken to hold.
_EARLY, _LATE = 4, 16
_CLOSE, _NO_STEP = 1e-3, 1e-4


@dataclass(frozen=True)
class StepFacts:
    """What is known of a class.

    Attributes:
        scaling: How its step follows the size of a gradient.
        rate: Whether lr is a step size.
        copies: Whether it keeps a second point that a moved parameter would leave behind.
    """

    scaling: Scaling = None
    rate: bool = True
    copies: bool = False


def step_facts(make: Maker, options: Mapping[str, Any], groups: Sequence[Group]) -> StepFacts:
    """Try a class with param groups.

    Args:
        make: The class.
        options: What it is built with.
        groups: With all options that they have.
    """
    found = [_facts(make, options, groups, place) for place in set(kinds_of(groups))]
    scalings = {facts.scaling for facts in found}
    return StepFacts(
        scaling=scalings.pop() if len(scalings) == 1 else None,
        rate=all(facts.rate for facts in found),
        copies=any(facts.copies for facts in found),
    )


def require_facts(plan: Plan, facts: StepFacts, name: str) -> None:
    """Refuse an optimizer that a method of the plan cannot work with.

    Raises:
        InputError: With the first weight, the method, and what to take.
    """
    for entry in plan.entries:
        reason = _why_not(entry, facts)
        if reason is not None:
            raise InputError(
                f"{entry.parametrization}, planned for {entry.key!r}, cannot work with {name}: "
                f"{reason}; take another optimizer, such as torch.optim.AdamW, or leave the "
                "method out"
            )


def needs_facts(plan: Plan) -> bool:
    """Whether anything in a plan asks."""
    return any(entry.metric or entry.by.retracts for entry in plan.entries)


def _why_not(entry: PlanEntry, facts: StepFacts) -> str | None:
    by = entry.by
    metric = by if isinstance(by, MetricParametrization) else None
    if metric is not None and metric.asks_scaling and facts.scaling is None:
        return (
            "its step neither follows the size of a gradient in proportion, entry by entry, as "
            "SGD's, nor leaves it out, as AdamW's"
        )
    linear = metric is not None and metric.asks_scaling and facts.scaling == "linear"
    moves = by.retracts if metric is None else metric.moves_after and not linear
    if moves and facts.copies:
        return "it keeps a copy of the parameters, which would not follow what is moved"
    if metric is not None and metric.reads_rate and not facts.rate:
        return "it finds its step size by itself, and its learning rate is none"
    return None


def _facts(
    make: Maker, options: Mapping[str, Any], groups: Sequence[Group], place: int
) -> StepFacts:
    start = torch.linspace(0.5, 2.0, 24, dtype=torch.float64).view(6, 4)
    slopes = torch.linspace(1.0, 3.0, 24, dtype=torch.float64)
    factors = torch.tensor([1.0, 4.0], dtype=torch.float64).repeat(12)

    def tried(slope: Tensor, count: int) -> tuple[Tensor, dict[Any, Any]] | None:
        def gradient(step: int, at: int, _p: Tensor) -> Tensor | None:
            return slope * (1 + 0.25 * step) if at == place else None

        made = after_steps(make, options, [_group(g, start) for g in groups], gradient, count)
        if made is None:
            return None
        (p,) = made.param_groups[place]["params"]
        return (p.detach() - start).flatten(), dict(made.state.get(p, {}))

    still = tried(torch.zeros_like(slopes), 1)
    copies = still is not None and any(shadows(value, start) for value in still[1].values())
    found = []
    for count in (_EARLY, _LATE):
        one, other = tried(slopes, count), tried(factors * slopes, count)
        if one is None or other is None:
            return StepFacts(copies=copies)
        found.append((one[0], _scaling(one[0], other[0], factors)))
    (early, scaling), (_late, later) = found
    rate = float(early.abs().max()) >= _NO_STEP * _RATE
    return StepFacts(scaling if scaling == later else None, rate=rate, copies=copies)


def _scaling(plain: Tensor, scaled: Tensor, factors: Tensor) -> Scaling:
    if not bool((plain != 0).all()):
        return None
    ratio = scaled / plain
    if bool(((ratio - factors).abs() <= _CLOSE * factors).all()):
        return "linear"
    return "free" if bool(((ratio - 1).abs() <= _CLOSE).all()) else None


def _group(group: Group, start: Tensor) -> Group:
    tried = trial_group(group, [nn.Parameter(start.clone())])
    if group.get("lr") is not None:
        tried["lr"] = _RATE
    if "weight_decay" in group:
        tried["weight_decay"] = 0.0
    return tried


def facts_of(
    plan: Plan, make: Maker, options: Mapping[str, Any], groups: Sequence[Group]
) -> StepFacts:
    """What a plan must know of a class; nothing is tried where nothing asks.

    Raises:
        InputError: A method of the plan cannot work with the class.
    """
    if not needs_facts(plan):
        return StepFacts()
    facts = step_facts(make, options, groups)
    require_facts(plan, facts, class_name(make))
    return facts
