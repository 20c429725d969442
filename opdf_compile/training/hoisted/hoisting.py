"""hoist: a student and a plan -> the weight program beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.fx.graph import CodeGen

from opdf_compile.errors import InputError
from opdf_compile.graph import PHASES, copied, over_tensors_of
from opdf_compile.passes import Hoist, HoistResult, ProgramPart, program_parts, weight_program
from opdf_compile.planning import Plan, require_plan
from opdf_compile.planning import plan as make_plan
from opdf_compile.training.announcing import WeightProgress, announced
from opdf_compile.training.folding import fold
from opdf_compile.training.hoisted.batching import Batched, make_units
from opdf_compile.training.hoisted.binding import Bound, reshard, unwrap, validate
from opdf_compile.training.hoisted.direct import Direct
from opdf_compile.training.hoisted.program import WeightProgram
from opdf_compile.training.hoisted.ranks import ProgramRanks, share_out
from opdf_compile.training.inline.expanded import Expanded

_LOG = logging.getLogger("opdf_compile")


def hoist(
    student: nn.Module,
    plan: Plan | None = None,
    *,
    batched: Batched = False,
    recompute: bool = False,
    process_group: Any = None,
    progress: WeightProgress | None = None,
    separate: Callable[[str], Hashable] = lambda key: None,
    matrices: bool = False,
) -> WeightProgram:
    """Bind a weight program to the user's own module.

    The module is not changed: W holds the same bits until the first refresh, its forward stays its
    own, and nothing is registered on it.

    Args:
        student: The module that is trained; torch.compile's and DDP's wrappers are looked through.
            Build after `fully_shard` and after moving it to its device. Or an Expanded in
            training: the program takes its cores over, with whatever optimizer steps them, and
            `program.module` is the student folded from it.
        plan: What is over-parameterised; `opdf.plan(student)` if None.
        batched: Compose weights of one form together, their cores stacked: exact for optimizers
            that work entry by entry (SGD, Adam, ..). "auto": the small ones, see `batching`.
        recompute: Save the memory of the intermediate products between refresh and backward, at
            the cost of making them again; the last product of each weight is not.
        process_group: Share the program out over these ranks; None: every rank runs all of it.
        progress: Called with (weight, number done, number of weights) before each decomposition;
            the log ``opdf_compile`` has the same at INFO, and a warning of a weight that is dear.
        separate: Weights for which this differs are never batched together.
        matrices: Keep each core as a matrix, (left bond * out mode, in mode * right bond), for an
            optimizer that takes nothing else. `program.cores()` has its four axes all the same.

    Returns:
        The program; its `parameters()` are what the optimizer steps.

    Raises:
        PlanError: The plan is for another module.
        InputError: A weight holds NaN or infinity, or the student is wrapped by PEFT.

    Example:
        >>> import torch, opdf_compile as opdf
        >>> student = torch.nn.Linear(16, 16)
        >>> program = opdf.hoist(student, opdf.plan(student))
        >>> inner = torch.optim.AdamW(program.parameters(), lr=1e-3)
        >>> student(torch.randn(2, 16)).sum().backward()
        >>> pulled = program.backward(); inner.step(); program.refresh()
        >>> pulled
        ('weight',)
    """
    if isinstance(student, Expanded):
        if plan is not None and plan != student.plan:
            raise InputError("an Expanded has its own plan; leave plan out")
        if process_group is not None or batched not in (False, "auto"):
            raise InputError(
                "an Expanded's cores stay where and as they are, found batched or process_group; "
                "fold it and hoist the student that comes out"
            )
        if student.plan.sites:
            raise InputError(
                f"the Expanded has branches beside {len(student.plan.sites)} convolutions, which "
                "run on the batch and cannot leave the forward; train it as it is, or hoist "
                "opdf.branch(student, plan)"
            )
        return _from_expanded(student, recompute)
    module = unwrap(student)
    plan = make_plan(module) if plan is None else plan
    require_plan(plan)
    validate(plan, module)
    reshard(module)  # A root that an eval forward left unsharded may hold stale shards.
    composed = replace(plan, entries=tuple(e for e in plan.entries if not e.metric))
    bounds = {entry.key: Bound(module, entry) for entry in composed.entries}
    devices = {key: bound.device for key, bound in bounds.items()}
    # The program follows from the plan alone. Nothing is traced, so that a student whose forward
    # no graph can hold is hoisted like any other.
    parts = program_parts(weight_program(composed, devices), list(bounds))
    ranks = share_out(parts, composed, process_group)
    mine = [part for part in parts if ranks.mine(part)]
    wanted = {key for part in mine for key in part.keys}
    ranks.require_same(bounds)
    # A sharded weight is gathered by all ranks together, also by those that do not need it.
    reading = ((key, bound.read()) for key, bound in bounds.items())
    weights = {key: weight for key, weight in reading if key in wanted}
    # The log is the same on all ranks; a caller's own `progress` may want to know its rank.
    tell = announced(plan, progress) if ranks.rank == 0 else progress
    cores = ranks.together(lambda: _decomposed(composed, weights, tell))
    units = make_units(
        mine, composed, cores, bounds, batched=batched, separate=separate, matrices=matrices
    )
    direct = [_direct(Bound(module, entry)) for entry in plan.entries if entry.metric]
    _LOG.debug("hoist: %d weights in %d units, %d direct", len(wanted), len(units), len(direct))
    return WeightProgram(module, plan, units, bounds, ranks, recompute=recompute, direct=direct)


def _direct(bound: Bound) -> Direct:
    """A weight without cores; every rank has it, and reads it whole where anything is kept."""
    kept = bound.entry.decompose(bound.read()) if bound.entry.core_names else ()
    return Direct(bound, kept)


def _decomposed(
    plan: Plan, weights: Mapping[str, Tensor], progress: WeightProgress | None
) -> dict[str, Tensor]:
    """The cores of the weights given, by name."""
    cores: dict[str, Tensor] = {}
    for index, entry in enumerate(plan.entries):
        if progress is not None:
            progress(entry.key, index, len(plan.entries))
        if entry.key in weights:
            cores.update(zip(entry.core_names, entry.decompose(weights[entry.key]), strict=True))
    return cores


def _from_expanded(expanded: Expanded, recompute: bool) -> WeightProgram:
    """The program that the expanded graphs hold, over the very same cores."""
    student = fold(expanded)
    if not isinstance(student, nn.Module):
        raise InputError(
            "the Expanded was made from an ExportedProgram, which has no module to bind to; hoist "
            "the module, or train the Expanded as it is"
        )
    parts: dict[tuple[str, ...], ProgramPart] = {}
    for phase in PHASES:
        # The pass takes a graph apart, and the Expanded goes on running its own.
        graph = over_tensors_of(expanded.tree, copied(expanded.phase(phase).graph, CodeGen()))
        result = Hoist()(graph)
        assert isinstance(result, HoistResult)
        # A weight that both phases read is one part; one that only one of them reads is one, too.
        for part in result.parts():
            parts.setdefault(part.keys, part)
    # The Parameters themselves: the optimizer that steps them knows no others.
    cores = dict(expanded.tree.named_parameters(remove_duplicate=False))
    bounds = {entry.key: Bound(student, entry) for entry in expanded.plan.entries}
    units = make_units(list(parts.values()), expanded.plan, cores, bounds, batched=False)
    return WeightProgram(
        student, expanded.plan, units, bounds, ProgramRanks(None, {}), recompute=recompute
    )
