"""Decide for every match what it becomes: its rule says what, the size that is asked for how much.

See `rules` and `sizing`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from opdf_compile.errors import PlanError
from opdf_compile.graph import Match, MatchReport, Refusal, Traced, bare, match, step_flops
from opdf_compile.parametrizations import Parametrization, Spec
from opdf_compile.planning.affordable import (
    LIMIT,
    PER_WEIGHT,
    affordable,
    all_too_dear,
    too_dear,
)
from opdf_compile.planning.entry import PlanEntry
from opdf_compile.planning.globs import Globs
from opdf_compile.planning.plans import Plan
from opdf_compile.planning.rules import Rules
from opdf_compile.planning.site_entry import SiteEntry
from opdf_compile.planning.sites import site_entries
from opdf_compile.planning.sizing import Asked, sized

_LOG = logging.getLogger("opdf_compile")
DEFAULT_CORES = 3
DEFAULT_MIN_SIZE = 64


def plan(
    model: Traced | nn.Module,
    *,
    cores: int | None = None,
    scale: float | None = None,
    overhead: float | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_size: int = DEFAULT_MIN_SIZE,
    parametrization: str | None = None,
    rules: Mapping[str, str] | None = None,
) -> Plan:
    """Decide how each weight is over-parameterised.

    Where nothing says how much or into what, a weight of a traced model gets three cores if a step
    on the example batch can pay for them: the products of its cores take at most a quarter of the
    FLOPs of its own plain step. If not, it gets the largest smaller chain that does, or is left
    alone. Of a bare module no batch is known, and an example of which no weight to plan sees enough
    rows is taken for one to trace with, which a warning says: each gets three cores then.

    Args:
        model: A traced model; a bare module is accepted (module-level matches, no FLOPs).
        cores: Cores per weight, whatever they cost; with a parametrization or rules, and nothing
            else, what it is usually given (mpo: 3, svd: 2). Among rules it speaks to those that
            take a number of cores and do not say their own.
        scale: Training parameters over deployed parameters, above 1.
        overhead: Predicted FLOPs of a training step over the plain student's, above 1.
        include: Globs over weight names; only these are planned. Names a vocabulary-sized weight
            that is left alone otherwise.
        exclude: Globs over weight names that are left alone.
        min_size: Weights with fewer parameters are left alone.
        parametrization: Name in the registry, with options in brackets: "wide(expansion=8)"; or
            "none", which leaves weights alone; mpo if it is left out.
        rules: Globs over weight names, and the parametrization of each; the first that names a
            weight counts. `parametrization` is that of all others.

    Returns:
        The plan.

    Raises:
        PlanError: The request contradicts itself, a glob names nothing, or no weight is left.

    Example:
        >>> import torch
        >>> round(plan(torch.nn.Linear(768, 3072), cores=3).scale, 3)
        2.125
        >>> student = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
        >>> mixed = plan(student, rules={"0.*": "gains"}, parametrization="svd")
        >>> [(entry.key, entry.parametrization) for entry in mixed.entries]
        [('0.weight', 'gains'), ('1.weight', 'svd')]
    """
    by_rule = Rules.of(rules, parametrization)
    request = usual = _request(by_rule, cores, scale, overhead)
    named = (cores, scale, overhead, parametrization)
    by_default = not rules and all(value is None for value in named)
    if cores is not None:
        by_rule = by_rule.hearing(cores)
    graph = model.graph if isinstance(model, Traced) else None
    flops = step_flops(graph) if graph is not None else 0
    if by_default and flops:
        request = {PER_WEIGHT: LIMIT}
    report = match(model)
    chosen, refusals = select(report, include, exclude, min_size)
    by_rule.require_used(_everything(report).values())
    asked = [(found, by_rule.rule(found)) for found in chosen]
    beside = [(found, rule.request) for found, rule in asked if rule.of_sites]
    sites, no_sites = site_entries(model, beside) if beside else ([], [])
    weights = [(found, rule) for found, rule in asked if not rule.of_sites]
    entries, plain = _weights(weights, request, flops, sites)
    if not entries and request is not usual:
        request = usual
        entries, plain = _weights(weights, request, flops, sites)
        if entries:
            _LOG.warning("%s", all_too_dear(DEFAULT_CORES))
    refusals += [*no_sites, *plain]
    if not entries and not sites:
        raise PlanError(_nothing(report, refusals))
    made = Plan(
        tuple(entries),
        tuple(refusals),
        flops,
        request,
        rung=report.rung,
        notes=report.notes,
        sites=tuple(sites),
    )
    source = model.source if isinstance(model, Traced) else bare(model)
    return made.made_for(source) if isinstance(source, nn.Module) else made


def _weights(
    asked: Asked, request: dict[str, Any], flops: int, sites: Sequence[SiteEntry]
) -> tuple[list[PlanEntry], list[Refusal]]:
    """An entry or a refusal for each weight that is asked to become cores, or nothing."""
    unfit = {found.key: rule.why_not(found) for found, rule in asked}
    fitting = [(found, rule) for found, rule in asked if unfit[found.key] is None]
    by_default = PER_WEIGHT in request
    specs = affordable(fitting) if by_default else sized(fitting, request, flops, sites)
    entries: list[PlanEntry] = []
    refusals: list[Refusal] = []
    for found, rule in asked:
        spec = specs.get(found.key)
        if spec is None:
            dear = too_dear(found) if by_default else "does not fit into the overhead asked for"
            reason = unfit[found.key] or dear
        elif not _adds(spec, rule.by):
            reason = "has sizes that allow no bond: cores would add nothing"
        else:
            entries.append(PlanEntry(found.key, rule.request.name, spec, found.aliases))
            continue
        refusals.append(Refusal(found.key, reason, shape=found.shape))
    return entries, refusals


def _request(
    rules: Rules, cores: int | None, scale: float | None, overhead: float | None
) -> dict[str, Any]:
    """The size that is asked for, and the rules in words where there is more than a name."""
    given = at_most_one(cores=cores, scale=scale, overhead=overhead)
    for name in ("scale", "overhead"):
        value = given.get(name, 2)
        if type(value) not in (int, float) or not 1 < value < float("inf"):
            raise PlanError(
                f"{name} is {value!r}, wanted a number above 1; leave it out for the usual cores"
            )
    if given and not any(rule.of_weights for rule in rules):
        name, value = next(iter(given.items()))
        raise PlanError(
            f"{name}={value!r} is given for {', '.join(rules.words().values())}, which puts "
            "branches beside convolutions or leaves weights alone and has no cores; leave it out"
        )
    (rule, *others) = rules
    if others:
        return given | {"rules": rules.words()}
    word = str(rule.request)
    if given and rule.of_weights and rule.own_cores is not None:
        raise PlanError(
            f"{next(iter(given))} is given beside {word!r}, which says how much by itself; remove "
            "one of them"
        )
    if not rule.of_weights:
        return {"parametrization": word}
    words = {"parametrization": word} if rule.request.options else {}
    return (given or {"cores": rule.cores}) | words


def at_most_one(**asked: Any) -> dict[str, Any]:
    """What is asked for, by name, of what excludes each other.

    Raises:
        PlanError: Two are given.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) > 1:
        raise PlanError(
            f"{' and '.join(given)} are given together, wanted one of {', '.join(asked)}; each of "
            "them fixes the plan"
        )
    return given


def select(
    report: MatchReport, include: Sequence[str], exclude: Sequence[str], min_size: int
) -> tuple[list[Match], list[Refusal]]:
    """The matches that a plan covers, and a refusal for each of the others.

    Raises:
        PlanError: A glob names no weight.
    """
    wanted, unwanted = Globs(include), Globs(exclude)
    refused = {r.key: r.reason for r in report.refusals}
    everything = _everything(report)
    offers = {r.key for r in report.refusals if r.offer is not None}
    for globs in (wanted, unwanted):
        globs.require_used(everything.values())
    chosen: list[Match] = []
    refusals = [r for r in report.refusals if r.offer is None]
    for key, found in everything.items():
        reason = _left_out(found, wanted, unwanted, min_size)
        if reason is None and key in offers and not wanted.name(found):
            reason = refused[key]
        if reason is None:
            chosen.append(found)
        else:
            refusals.append(Refusal(key, reason, shape=found.shape))
    return chosen, refusals


def _everything(report: MatchReport) -> dict[str, Match]:
    """All weights that globs can name: the matches, and what is taken only if it is named."""
    offers = {r.key: r.offer for r in report.refusals if r.offer is not None}
    return {m.key: m for m in report.matches} | offers


def _left_out(found: Match, include: Globs, exclude: Globs, min_size: int) -> str | None:
    if include and not include.name(found):
        return "is not named by include"
    if exclude.name(found):
        return "is named by exclude"
    if found.parameters < min_size:
        return f"has {found.parameters} parameters, fewer than min_size={min_size}"
    return None


def _adds(spec: Spec, by: Parametrization[Any]) -> bool:
    """Whether the cores hold more freedom than one scalar for each pair of neighbours.

    One tensor has no neighbour: it adds nothing, and changes only how the weight moves. Fewer
    entries than the weight's are a compressed form, which somebody has asked for as such.
    """
    tensors, cost = len(by.shapes(spec)), by.cost(spec)
    added = cost.added + cost.untrained
    return tensors == 1 or added < 0 or added >= tensors


def _nothing(report: MatchReport, refusals: list[Refusal]) -> str:
    if not report.matches and not refusals:
        return (
            "the model has no Linear or Conv weight that this tool finds, wanted at least one; "
            "see opdf-compile inspect MODEL"
        )
    reasons = "; ".join(f"{r.key} {r.reason}" for r in refusals[:3])
    return (
        f"no weight is left to plan ({len(report.matches)} matches, then: {reasons}), wanted at "
        "least one; relax include, exclude, min_size or the overhead"
    )
