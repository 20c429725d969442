"""unbatch: a batch whose members no longer go the same way becomes units of one weight each.

    stack_b(T_k), state of the stack   ->   T_k^(b), state^(b),   b = 1..B

An optimizer steps a batch as one tensor. That is exact while all members have a gradient in each
step, or none has: torch leaves a parameter without gradient alone, where momentum would move a row
of a stack. So the first step in which the members differ (a weight was frozen, an expert was not
called) takes the batch apart, and so does a state in which they differ. Values do not change.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from torch import Tensor, nn
from torch.optim import Optimizer

from opdf_compile.passes import program_parts, weight_program
from opdf_compile.planning import Plan
from opdf_compile.training.hoisted.formulas import unit_of
from opdf_compile.training.hoisted.program import WeightProgram
from opdf_compile.training.hoisted.unit import Unit
from opdf_compile.training.optimizer import weight_state as named

_LOG = logging.getLogger("opdf_compile")


def uneven(unit: Unit) -> bool:
    """Whether some members of a batch have a gradient and others have none."""
    if not unit.batched:
        return False
    return len({bound.parameter.grad is None for bound in unit.weights}) > 1


def take_apart(program: WeightProgram, unit: Unit, inner: Optimizer) -> None:
    """Replace a batch by units of one weight each, in the program and in the optimizer.

    Each member takes its share of the optimizer's state along.
    """
    _LOG.info(
        "the batch of %s and %d more weights is taken apart: only some of them have a gradient or "
        "a state like the others'",
        unit.keys[0],
        len(unit.keys) - 1,
    )
    singles = tuple(_single(program.plan, unit, row) for row in range(len(unit.weights)))
    for place, stack in enumerate(unit.storage):
        rows = [single.storage[place] for single in singles]
        _replace(inner, stack, rows)
        if stack not in inner.state:
            continue
        state = inner.state.pop(stack)
        for row, core in enumerate(rows):
            inner.state[core] = {
                key: named.own(named.row_of(value, stack, row, unit))
                for key, value in state.items()
            }
    units = list(program.units)
    at = units.index(unit)
    program.units = (*units[:at], *singles, *units[at + 1 :])


def _single(plan: Plan, unit: Unit, row: int) -> Unit:
    bound, names = unit.weights[row], unit.members[row]
    alone = replace(plan, entries=(bound.entry,))
    (part,) = program_parts(weight_program(alone), [bound.key])
    value = dict(zip(names, (stack.detach()[row] for stack in unit.storage), strict=True))
    storage = [nn.Parameter(value[name].clone()) for name in part.cores]
    single = unit_of(part.graph, (part.cores,), storage, (bound,), batched=False)
    single.hold_still(bound.entry.untrained)
    if unit.compiled_with is not None:
        single.compile(**unit.compiled_with)
    return single


def _replace(inner: Optimizer, stack: Tensor, rows: list[nn.Parameter]) -> None:
    for group in inner.param_groups:
        found = [place for place, p in enumerate(group["params"]) if p is stack]
        for place in found:
            group["params"][place : place + 1] = rows
