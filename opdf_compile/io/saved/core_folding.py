"""Fold a state dict of cores without any graph: from the plan in its header, or from a student.

{K_cores.0, .., K_cores.n-1, others}  ->  {K: round(compose in float64), others}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod

from torch import Tensor, nn

from opdf_compile.errors import FoldError, PlanError
from opdf_compile.graph import Match, bare, layer_rows, match, names_of_parameters
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.parametrizations import WeightForm, registered, registered_names
from opdf_compile.passes import branch_key, core_key
from opdf_compile.planning import Plan, PlanEntry


def fold_state(
    tensors: Mapping[str, Tensor], plan: str | None, model: nn.Module | None
) -> dict[str, Tensor]:
    """The student's own tensors.

    Args:
        tensors: Cores and other tensors by name.
        plan: JSON text of the plan, if the file's header has it.
        model: The student, which tells the shapes that cores alone leave open.

    Raises:
        FoldError: Cores are missing, or nothing tells the shape of a weight.
        PlanError: The plan is damaged.
    """
    groups, beside = _groups(tensors), _beside(tensors)
    if not groups and not beside:
        raise FoldError(
            "the file holds no cores (names such as weight_cores.0), wanted what opdf-compile "
            "expand wrote; this student is folded already"
        )
    read = _planned(plan) if plan else None
    entries = {e.key: e for e in read.entries} if read else _inferred(groups, model)
    state = {
        name: tensor
        for name, tensor in tensors.items()
        if core_key(name) is None and branch_key(name, tensors) is None
    }
    state.update(_without_branches(tensors, beside, read))
    for key, cores in groups.items():
        if key not in entries:
            raise FoldError(
                f"the cores of {key!r} belong to no weight of the plan or model, wanted one; give "
                "the student they were expanded from with --model"
            )
        entry = entries[key]
        state.update(dict.fromkeys((key, *entry.aliases), entry.fold(cores)))
    return state if model is None else _ordered(state, model)


def _beside(tensors: Mapping[str, Tensor]) -> set[str]:
    """The weights beside which branches stand."""
    found = (branch_key(name, tensors) for name in tensors)
    return {place[0] for place in found if place is not None}


def _without_branches(
    tensors: Mapping[str, Tensor], beside: set[str], plan: Plan | None
) -> dict[str, Tensor]:
    """The tensors of every site, its branches folded into them."""
    sites = {site.key: site for site in plan.sites} if plan else {}
    unknown = sorted(beside - sites.keys())
    if unknown:
        raise FoldError(
            f"branches stand beside {unknown[0]!r}, and no plan says where their BatchNorm is: "
            "fold the .safetensors that expand wrote, whose header has it (--weights takes the "
            "trained state), or a .pt2, whose graph tells"
        )
    state: dict[str, Tensor] = {}
    for site in sites.values():
        state.update(site.fold(tensors))
    return state


def _ordered(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The student's own keys in its own order; a tied weight may be there under one name only."""
    for names in names_of_parameters(model).values():
        present = [name for name in names if name in state]
        state.update({name: state[present[0]] for name in names if present})
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    shapes = [n for n, t in wanted.items() if n in state and t.shape != state[n].shape]
    if missing or unknown or shapes:
        raise FoldError(
            f"the tensors do not belong to the model: {(missing or unknown or shapes)[0]!r} "
            f"({len(missing)} missing, {len(unknown)} unknown, {len(shapes)} of other shape); give "
            "the student they were expanded from"
        )
    return {name: state[name] for name in wanted}


def _groups(tensors: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    found: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        place = core_key(name)
        if place is not None:
            found.setdefault(place[0], {})[place[1]] = tensor
    for key, cores in found.items():
        if sorted(cores) != list(range(len(cores))):
            raise FoldError(
                f"the file holds the cores {sorted(cores)} of {key!r}, wanted 0 to {max(cores)} "
                "without a gap; save the whole state dict"
            )
    return {key: [cores[i] for i in range(len(cores))] for key, cores in found.items()}


def _planned(plan: str) -> Plan:
    try:
        value = json.loads(plan)
    except (ValueError, RecursionError) as error:
        raise FoldError(
            f"the plan in the file's header is damaged ({error}), wanted JSON; give the student "
            "with --model"
        ) from error
    return Plan.from_json(value)


def _inferred(groups: Mapping[str, list[Tensor]], model: nn.Module | None) -> dict[str, PlanEntry]:
    if model is None:
        return {key: _from_shapes(key, cores) for key, cores in groups.items()}
    report, layers = match(model), layer_rows(bare(model))
    offers = [r.offer for r in report.refusals if r.offer is not None]
    of_layers = (*layers.matches, *(r.offer for r in layers.refusals if r.offer is not None))
    # Of a Parameter that no layer holds, modules do not tell which axis is which.
    raw = {offer.key for offer in offers} - {found.key for found in of_layers}
    known: dict[str, Match] = {m.key: m for m in (*report.matches, *offers)}
    return {
        key: _entry(known[key], cores, sure=key not in raw)
        for key, cores in groups.items()
        if key in known
    }


def _entry(found: Match, cores: list[Tensor], *, sure: bool) -> PlanEntry:
    """The parametrization and spec that have tensors of these shapes.

    Cores with four axes are an MPO's (svd's are such, too); other shapes are offered to every other
    parametrization in turn.
    """
    shapes, form = [tuple(core.shape) for core in cores], WeightForm.matched(found)
    if all(len(shape) == 4 for shape in shapes):
        form = replace(form, transposed=_transposed(found, cores, sure=sure))
        spec = registered("mpo").infer(shapes, form)
        return PlanEntry(found.key, "mpo", spec, found.aliases)
    ways = _ways(found, sure=sure)
    reasons = []
    for name in registered_names():
        for turned in ways:
            try:
                spec = registered(name).infer(shapes, replace(form, transposed=turned))
            except FoldError as error:
                reasons.append(f"{name}: {error}")
            else:
                return PlanEntry(found.key, name, spec, found.aliases)
    raise FoldError(
        f"the cores of {found.key!r} are those of no parametrization ({'; '.join(reasons)}), "
        "wanted shapes that tell the weight; fold the file that opdf-compile expand wrote, which "
        "has the plan"
    )


def _ways(found: Match, *, sure: bool) -> tuple[bool, ...]:
    """Whether the weight is stored (in, out): as its layer says, or both answers."""
    if sure or len(found.shape) != 2:
        return (found.transposed,)
    if found.shape[0] == found.shape[1]:
        raise FoldError(
            f"the cores of {found.key!r} make a square matrix, and nothing tells its rows from its "
            "columns: no layer holds it and the file has no plan; fold the file that opdf-compile "
            "expand wrote"
        )
    return (False, True)


def _transposed(found: Match, cores: list[Tensor], *, sure: bool) -> bool:
    """Whether the weight is stored (in, out); where two answers are left the cores' sizes tell."""
    ways = _ways(found, sure=sure)
    return ways[0] if len(ways) == 1 else prod(core.shape[1] for core in cores) == found.shape[1]


def _from_shapes(key: str, cores: list[Tensor]) -> PlanEntry:
    """A matrix follows from its cores; a convolution's kernel does not."""
    if any(core.ndim != 4 for core in cores):
        raise FoldError(
            f"the cores of {key!r} have {cores[0].ndim} axes, wanted 4 (left, out, in, right); "
            "give the student with --model"
        )
    shape = (prod(c.shape[1] for c in cores), prod(c.shape[2] for c in cores))
    dtype = dtype_name(cores[0].dtype)
    try:
        form = WeightForm(shape, dtype)
    except PlanError as error:
        raise FoldError(f"the cores of {key!r} fit no weight: {error}") from error
    return PlanEntry(key, "mpo", registered("mpo").infer([tuple(c.shape) for c in cores], form))
