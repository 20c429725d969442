"""The default plan: chains that a step can pay for, weight by weight.

price of a weight = 1 + FLOPs of composing it, forward and backward / FLOPs of its own plain step
                 <= 1.25

The own plain step of a weight of N entries that sees R rows of the batch is 6 R N FLOPs, and a
chain of two cores with the bond D composes it at 6 D N: it fits from R = 4 D rows on; in a first
layer, where no gradient goes to the input, its step is 4 R N FLOPs and R = 6 D. A weight that sees
enough rows gets the usual chain. One that sees fewer gets a smaller bond, or two cores: what adds
most among those that fit. Every bond is full at its modes, so nothing is lost by it. One that has
no such chain is left alone. As no weight costs more than its limit, neither does the step.

The rows are those of one micro-batch. What is counted are products, as everywhere in a plan; the
optimizer's pass over the cores comes on top.
"""

from __future__ import annotations

import math

from opdf_compile.graph import Match
from opdf_compile.parametrizations import Spec
from opdf_compile.planning.dear import FLOPS_PER_ROW
from opdf_compile.planning.plans import Plan
from opdf_compile.planning.rules import Rule
from opdf_compile.planning.sizing import Asked

# In a plan's request: the limit of every single weight, which nobody has to ask for.
PER_WEIGHT = "overhead_per_weight"
LIMIT = 1.25


def affordable(asked: Asked) -> dict[str, Spec]:
    """The spec of every weight that has one within the limit, by its key."""
    chosen = {found.key: _largest(found, rule) for found, rule in asked}
    return {key: spec for key, spec in chosen.items() if spec is not None}


def _largest(found: Match, rule: Rule) -> Spec | None:
    budget = (LIMIT - 1) * found.step_flops
    usual = rule.proposed(found)
    if rule.by.cost(usual).step_flops <= budget:
        return usual
    priced = ((rule.by.cost(spec), spec) for spec in rule.lighter(found))
    fitting = [(cost.added, spec) for cost, spec in priced if cost.step_flops <= budget]
    return max(fitting, key=lambda choice: choice[0])[1] if fitting else None


def too_dear(found: Match) -> str:
    """Why a weight is left alone by the default plan, read on from its name."""
    if not found.flops:
        return "is in no product of the example batch, so that the rows that it sees are not known"
    rows = found.flops // (2 * found.parameters)
    return (
        f"sees {rows:,} {'row' if rows == 1 else 'rows'} of the example batch, too few for a "
        f"useful chain at or below {LIMIT:g} times its own plain step"
    )


def all_too_dear(cores: int) -> str:
    """What is done where the default plan would leave every weight alone that it may plan.

    A batch axis is free, so an example of a few rows says little about the batch of training; and a
    plan of nothing would train the plain student unasked.
    """
    return (
        "none of the weights to plan sees enough rows of the example batch for a chain at or below "
        f"{LIMIT:g} times its own plain step, so each gets {cores} cores, as if the example were "
        "one to trace with; trace with the batch that you train with for a plan that fits it, or "
        f"say cores={cores} if that is what you want"
    )


def assumed_rows(plan: Plan) -> str | None:
    """What a plan that saw no example batch takes for granted; None where it saw one."""
    if plan.student_step_flops:
        return None
    wanted = {
        entry.key: math.ceil(entry.cost.step_flops / ((LIMIT - 1) * FLOPS_PER_ROW * entry.deployed))
        for entry in plan.entries
        if not entry.metric
    }
    if not any(wanted.values()):
        return None
    most = max(wanted, key=lambda key: wanted[key])
    return (
        "no example batch is known, so each weight is assumed to see enough rows in a step: with "
        f"fewer than {wanted[most]:,} rows {most} takes more than {LIMIT:g} times its own plain "
        "step; give plan=opdf.plan(opdf.trace(student, (batch,))) to fit the plan to a batch"
    )
