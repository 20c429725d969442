"""Which parts are composed together, and the units that come of it.

Measured on 2 CPU cores, float32, eight square weights, 5 cores, forward and backward of compose,
batched / one by one: 0.27 at 64 x 64, 0.85 at 256 x 256, 1.11 at 768 x 768 (see
benchmarks/training_step.py). A large product fills the machine by itself, and then the copies that
a batch needs are all that is left. So weights below `SMALL` FLOPs are batched. With few FLOPs for
each entry (gains, powerprop) the copies are most of it: a whole step, batched / one by one, is 0.6
at 64 x 64, 0.9 at 256 x 256, 1.4 at 512 x 512. So no weight of `LARGE` entries is batched (chains
of that size: 1.0). The rule looks at the plan only, never at a clock, so that two runs and two
ranks decide alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from opdf_compile.errors import InputError, PlanError
from opdf_compile.passes import ProgramPart, group
from opdf_compile.passes import batched as batched_graph
from opdf_compile.planning import Plan
from opdf_compile.training.hoisted.binding import Bound
from opdf_compile.training.hoisted.formulas import unit_of
from opdf_compile.training.hoisted.unit import Unit

Batched = bool | Literal["auto"]
_LOG = logging.getLogger("opdf_compile")

# FLOPs of one weight's compose, forward and backward, up to which "auto" batches.
SMALL = 10**9
# Entries of one weight from which on "auto" does not batch.
LARGE = 2**18


def make_units(
    parts: Sequence[ProgramPart],
    plan: Plan,
    cores: Mapping[str, Tensor],
    bounds: Mapping[str, Bound],
    *,
    batched: Batched,
    separate: Callable[[str], Hashable] = lambda key: None,
    matrices: bool = False,
) -> list[Unit]:
    """Units over the parts given, in their order.

    Args:
        parts: What this rank composes.
        plan: Tells what each weight costs.
        cores: Every core of these parts by name; taken over where nothing is stacked.
        bounds: Where each weight is written.
        batched: True, False, or "auto": weights up to `SMALL` FLOPs and below `LARGE` entries, as
            far as torch.vmap takes their compose.
        separate: Weights for which this differs are never in one batch.
        matrices: Store each core as a matrix; then nothing is stacked.

    Raises:
        InputError: `batched` is something else.
        PlanError: `batched` is True, and torch.vmap cannot take a compose.
    """
    if batched not in (True, False, "auto"):
        raise InputError(f"batched is {batched!r}, wanted True, False or 'auto'")
    small = {e.key: e.cost.step_flops <= SMALL and e.deployed < LARGE for e in plan.entries}
    steps = {entry.key: (entry.rates, entry.by.untrained(entry.spec)) for entry in plan.entries}
    untrained = {name for entry in plan.entries for name in entry.untrained}

    def apart(part: ProgramPart) -> Hashable:
        key = part.keys[0]
        wanted = small[key] if batched == "auto" else batched
        wanted = wanted and not matrices
        # A part of its own kind stays alone.
        return (separate(key), steps[key], None if wanted else part.keys)

    units = []
    for members in group(parts, cores, apart):
        try:
            units.append(_unit(members, cores, bounds, matrices))
        except PlanError as error:
            if batched is True:
                raise
            _LOG.info("composed one by one: %s", error)
            units.extend(_unit((part,), cores, bounds, matrices) for part in members)
    for unit in units:
        unit.hold_still(untrained)
    return units


def _unit(
    members: tuple[ProgramPart, ...],
    cores: Mapping[str, Tensor],
    bounds: Mapping[str, Bound],
    matrices: bool,
) -> Unit:
    first = members[0]
    weights = tuple(bounds[key] for part in members for key in part.keys)
    names = tuple(part.cores for part in members)
    if len(members) == 1:
        whole = [cores[name] for name in first.cores]
        storage = [_parameter(_matrix(core) if matrices else core) for core in whole]
        shapes = [core.shape for core in whole]
        return unit_of(first.graph, names, storage, weights, batched=False, shapes=shapes)
    graph = batched_graph(first, len(members), cores)
    stacks = [
        nn.Parameter(torch.stack([cores[row[place]].detach() for row in names]))
        for place in range(len(first.cores))
    ]
    return unit_of(graph, names, stacks, weights, batched=True)


def _matrix(core: Tensor) -> Tensor:
    """A core as the matrix (left bond * out mode, in mode * right bond); one of more axes alike."""
    if core.ndim <= 2:
        return core
    rows = core.shape[: core.ndim // 2].numel()
    return core.detach().reshape(rows, -1)


def _parameter(core: Tensor) -> nn.Parameter:
    return core if isinstance(core, nn.Parameter) else nn.Parameter(core)
