"""Choose a spec for every match: by number of cores, by scale, or by overhead.

cores     every weight gets the parametrization's usual spec with so many cores.
scale     sum of added parameters = (S - 1) x deployed. Weights are taken from the largest down;
          what one weight misses is carried to the next, so the total is met within one small step.
overhead  compose FLOPs per optimizer step <= (R - 1) x FLOPs of the student's step on the example
          batch. The largest common ratio of added to own parameters that fits is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from opdf_compile.errors import PlanError
from opdf_compile.graph import Match, MatchReport, Refusal, Traced, bare, match, step_flops
from opdf_compile.parametrizations import Parametrization, Spec, WeightForm, requested
from opdf_compile.planning.entry import PlanEntry
from opdf_compile.planning.globs import Globs
from opdf_compile.planning.plans import Plan
from opdf_compile.planning.rules import Rule
from opdf_compile.planning.sites import site_entries
from opdf_compile.tensor import Cost

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
    parametrization: str = "mpo",
) -> Plan:
    """Decide how each weight is over-parameterised.

    Args:
        model: A traced model; a bare module is accepted (module-level matches, no FLOPs).
        cores: Cores per weight; if nothing else is asked for 3, or what the parametrization is
            usually given (svd: 2).
        scale: Training parameters over deployed parameters, above 1.
        overhead: Predicted FLOPs of a training step over the plain student's, above 1.
        include: Globs over weight names; only these are planned. Names a vocabulary-sized weight
            that is left alone otherwise.
        exclude: Globs over weight names that are left alone.
        min_size: Weights with fewer parameters are left alone.
        parametrization: Name in the registry, with options in brackets: "wide(expansion=8)".

    Returns:
        The plan.

    Raises:
        PlanError: The request contradicts itself, a glob names nothing, or no weight is left.

    Example:
        >>> import torch
        >>> round(plan(torch.nn.Linear(768, 3072), cores=3).scale, 3)
        2.125
    """
    rule = Rule("*", requested(parametrization))
    graph = model.graph if isinstance(model, Traced) else None
    flops = step_flops(graph) if graph is not None else 0
    report = match(model)
    chosen, refusals = select(report, include, exclude, min_size)
    if rule.of_sites:
        _no_sizes(rule, cores=cores, scale=scale, overhead=overhead)
        sites, others = site_entries(model, [(found, rule.request) for found in chosen])
        refusals += others
        if not sites:
            raise PlanError(_nothing(report, refusals))
        words = {"parametrization": str(rule.request)}
        made = Plan((), tuple(refusals), flops, words, report.rung, report.notes, tuple(sites))
        return _made_for(made, model)
    by = rule.by
    request = _request(rule, cores, scale, overhead)
    unfit = {found.key: by.why_not(WeightForm.matched(found)) for found in chosen}
    fitting = [found for found in chosen if unfit[found.key] is None]
    specs = dict(_specs(fitting, request, flops, rule))
    entries: list[PlanEntry] = []
    for found in chosen:
        spec = specs.get(found.key)
        if spec is None:
            reason = unfit[found.key] or "does not fit into the overhead asked for"
        elif not _adds(spec, by):
            reason = "has sizes that allow no bond: cores would add nothing"
        else:
            entries.append(PlanEntry(found.key, rule.request.name, spec, found.aliases))
            continue
        refusals.append(Refusal(found.key, reason, shape=found.shape))
    if not entries:
        raise PlanError(_nothing(report, refusals))
    rung, notes = report.rung, report.notes
    made = Plan(tuple(entries), tuple(refusals), flops, request, rung=rung, notes=notes)
    return _made_for(made, model)


def _made_for(made: Plan, model: Traced | nn.Module) -> Plan:
    source = model.source if isinstance(model, Traced) else bare(model)
    return made.made_for(source) if isinstance(source, nn.Module) else made


def _no_sizes(rule: Rule, **asked: Any) -> None:
    """Refuse what sizes chains and says nothing of branches."""
    for name, value in at_most_one(**asked).items():
        raise PlanError(
            f"{name}={value!r} is given for {rule.request}, which puts branches beside "
            "convolutions and has no cores; leave it out"
        )


def _request(
    rule: Rule, cores: int | None, scale: float | None, overhead: float | None
) -> dict[str, Any]:
    usual, asked = rule.by.usual_cores, str(rule.request)
    if rule.cores is not None:
        if cores is not None:
            raise PlanError(
                f"cores is given twice, as {cores!r} and in {asked!r}, wanted it once; remove one"
            )
        cores = rule.cores
    given = at_most_one(cores=cores, scale=scale, overhead=overhead)
    words = {"parametrization": asked} if rule.request.options else {}
    if not given:
        return {"cores": usual} | words
    name, value = next(iter(given.items()))
    whole = name == "cores"
    least = min(2, usual)
    wanted = f"a whole number from {least} to 64" if whole else "a number above 1"
    if whole:
        good = type(value) is int and least <= value <= 64
    else:
        good = type(value) in (int, float) and 1 < value < float("inf")
    if not good:
        raise PlanError(f"{name} is {value!r}, wanted {wanted}; the default is cores={usual}")
    return given | words


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
    offers = {r.key: r.offer for r in report.refusals if r.offer is not None}
    everything = {m.key: m for m in report.matches} | offers
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


def _left_out(found: Match, include: Globs, exclude: Globs, min_size: int) -> str | None:
    if include and not include.name(found):
        return "is not named by include"
    if exclude.name(found):
        return "is named by exclude"
    if found.parameters < min_size:
        return f"has {found.parameters} parameters, fewer than min_size={min_size}"
    return None


def _specs(
    chosen: list[Match], request: dict[str, Any], flops: int, rule: Rule
) -> Iterator[tuple[str, Spec]]:
    if not chosen:
        return  # No request can be wrong for them: `plan` says that there are none.
    if "cores" in request:
        for found in chosen:
            yield found.key, rule.proposed(found, request["cores"])
    elif "scale" in request:
        yield from _by_scale(chosen, rule, float(request["scale"]))
    else:
        if not flops:
            raise PlanError(
                "overhead needs the FLOPs of the student's step, found a module without a graph; "
                "pass opdf.trace(model, args) if a graph can hold it, or ask for cores= or scale="
            )
        yield from _by_overhead(chosen, rule, (request["overhead"] - 1) * flops)


def _options(chosen: list[Match], rule: Rule) -> Iterator[tuple[Match, list[tuple[Cost, Spec]]]]:
    for found in chosen:
        yield found, [(rule.by.cost(s), s) for s in rule.candidates(found)]


def _adds(spec: Spec, by: Parametrization[Any]) -> bool:
    """Whether the cores hold more freedom than one scalar for each pair of neighbours.

    One tensor has no neighbour: it adds nothing, and changes only how the weight moves. Fewer
    entries than the weight's are a compressed form, which somebody has asked for as such.
    """
    tensors, cost = len(by.shapes(spec)), by.cost(spec)
    added = cost.added + cost.untrained
    return tensors == 1 or added < 0 or added >= tensors


def _by_scale(chosen: list[Match], rule: Rule, scale: float) -> Iterator[tuple[str, Spec]]:
    options = {m.key: [(cost.added, s) for cost, s in rows] for m, rows in _options(chosen, rule)}
    deployed = sum(m.parameters for m in chosen)
    most = 1 + sum(max(a for a, _ in o) for o in options.values()) / max(deployed, 1)
    least = 1 + sum(min(a for a, _ in o) for o in options.values()) / max(deployed, 1)
    # Half a per cent of slack: a request for the printed maximum is not refused for its rounding.
    if not least * 0.995 <= scale <= most * 1.005:
        raise PlanError(
            f"scale {scale:g} cannot be reached, these weights allow {least:.2f} to {most:.2f}; "
            "ask for a scale between them"
        )
    carry = 0.0
    for found in sorted(chosen, key=lambda m: (-m.parameters, m.key)):
        target = (scale - 1) * found.parameters + carry
        added, spec = min(options[found.key], key=lambda option: abs(option[0] - target))
        carry = target - added
        yield found.key, spec


def _by_overhead(chosen: list[Match], rule: Rule, budget: float) -> Iterator[tuple[str, Spec]]:
    options = {
        m.key: [(cost.added / m.parameters, cost.step_flops, spec) for cost, spec in rows]
        for m, rows in _options(chosen, rule)
    }
    best = _highest_ratio(options, budget)
    # Of the options up to this ratio each weight takes the one that adds most.
    for key, rows in options.items():
        fitting = [row for row in rows if row[0] <= best]
        if fitting:
            yield key, max(fitting, key=lambda row: row[0])[2]


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
