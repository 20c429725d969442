"""Every weight of a linear or convolution op is a match or a refusal with a sentence.

A match is one Parameter with all its uses: tied names and shared modules are one match. A refusal
may carry the match it would be (`Refusal.offer`): a plan that names it with `include` takes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from opdf_compile.graph.flops import shape_of, weight_op_flops
from opdf_compile.graph.module_match import bare, module_rows
from opdf_compile.graph.ops import (
    LOOKUP_OPS,
    NO_INPUT,
    PRODUCTS,
    STACKED,
    WEIGHT_OPS,
    WeightOperand,
    operand,
    operand_beside,
    refused_op,
)
from opdf_compile.graph.provenance import refuse_indirect
from opdf_compile.graph.rows import Match, MatchReport, Refusal, Use
from opdf_compile.graph.sharing import is_weight_dtype, names_of_parameters
from opdf_compile.graph.trace import PHASES, Phase, Traced
from opdf_compile.graph.uses import Reader, fed_by_inputs, readers

__all__ = ["Match", "MatchReport", "Refusal", "Use", "match"]


def match(model: Traced | nn.Module) -> MatchReport:
    """Find every weight that can be over-parameterised, and say why the others cannot.

    Args:
        model: A traced model; or a module, whose Linear and Conv submodules are then taken as they
            stand (no uses, no FLOPs, no view of functional calls).

    Returns:
        Matches and refusals, in the order of the model's parameters.

    Example:
        >>> import torch
        >>> [m.key for m in match(torch.nn.Sequential(torch.nn.Linear(4, 4))).matches]
        ['0.weight']
    """
    if isinstance(model, nn.Module):
        return module_rows(bare(model))
    found = _Findings(parameters=_parameters(model))
    for phase in PHASES:
        _scan(model.graphs[phase], phase, found)
    rows: dict[str, Match | Refusal] = {
        key: _judge(key, sighting) for key, sighting in found.sightings.items()
    }
    for phase in PHASES:
        for refusal in refuse_indirect(model.graphs[phase], found.parameters):
            rows.setdefault(refusal.key, refusal)
    for refusal in _unused(model):
        rows.setdefault(refusal.key, refusal)
    order = {names[0]: index for index, names in enumerate(found.parameters.values())}
    ordered = sorted(rows.values(), key=lambda row: order.get(row.key, len(order)))
    return MatchReport(
        matches=tuple(row for row in ordered if isinstance(row, Match)),
        refusals=tuple(row for row in ordered if isinstance(row, Refusal)),
        notes=model.notes,
    )


@dataclass
class _Sighting:
    parameter: Tensor
    aliases: tuple[str, ...]
    uses: list[tuple[Use, WeightOperand, bool]] = field(default_factory=list)
    lookups: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass
class _Findings:
    parameters: dict[int, tuple[str, ...]]
    sightings: dict[str, _Sighting] = field(default_factory=dict)


def _parameters(traced: Traced) -> dict[int, tuple[str, ...]]:
    """All names of each Parameter. The source module's own order and names come first."""
    if isinstance(traced.source, nn.Module):
        return names_of_parameters(traced.source)
    names: dict[int, tuple[str, ...]] = {}
    for phase in PHASES:
        for key, found in names_of_parameters(traced.graphs[phase]).items():
            names.setdefault(key, found)
    return names


def _scan(graph_module: GraphModule, phase: Phase, found: _Findings) -> None:
    """Record what every get_attr of a Parameter feeds."""
    fed = fed_by_inputs(graph_module)
    for node in graph_module.graph.nodes:
        parameter = parameter_of(graph_module, node)
        if parameter is None:
            continue
        names = found.parameters.get(id(parameter), (str(node.target),))
        for reader in readers(graph_module, node):
            _record(found, names, parameter, phase, reader, fed)


def parameter_of(graph_module: GraphModule, node: Node) -> nn.Parameter | None:
    """The Parameter that a get_attr reads, or None."""
    if node.op != "get_attr":
        return None
    value: object = graph_module
    for name in str(node.target).split("."):
        value = getattr(value, name, None)
    return value if isinstance(value, nn.Parameter) else None


def _record(
    found: _Findings,
    names: tuple[str, ...],
    parameter: Tensor,
    phase: Phase,
    reader: Reader,
    fed: set[Node],
) -> None:
    node = reader.node
    reason = refused_op(node)
    places = [
        where for where in WEIGHT_OPS.get(node.target, ()) if operand(node, where) is reader.operand
    ]
    refused = reason is not None and parameter.ndim > 1
    lookup = node.target in LOOKUP_OPS
    if not places and not refused and not lookup:
        return
    sighting = found.sightings.setdefault(names[0], _Sighting(parameter, names[1:]))
    shape = shape_of(reader.operand) or tuple(parameter.shape)
    if refused:
        sighting.refused.append(str(reason))
    elif places and len(shape) > 2 and not places[0].convolution:
        sighting.refused.append(STACKED)  # matmul broadcasts: x @ W with one matrix per head.
    elif places and node.target in PRODUCTS and operand_beside(node, places[0]) not in fed:
        sighting.refused.append(NO_INPUT)
    elif lookup:
        sighting.lookups.append(node.name)
    else:
        use = Use(phase, node.name, str(node.target), weight_op_flops(node, shape))
        sighting.uses.append((use, places[0], reader.swapped))


def _judge(key: str, sighting: _Sighting) -> Match | Refusal:
    weight = sighting.parameter
    uses = tuple(use for use, _where, _swapped in sighting.uses)
    reason = _reason(sighting)
    if not uses:
        what = sighting.refused[0] if sighting.refused else "is a lookup table, not a matrix factor"
        return Refusal(key, reason=what, shape=tuple(weight.shape))
    _use, where, swapped = sighting.uses[0]
    convolution = where.convolution and weight.ndim > 2
    found = Match(
        key=key,
        shape=tuple(weight.shape),
        dtype=str(weight.dtype).removeprefix("torch."),
        uses=uses,
        transposed=(where.transposed ^ swapped) and weight.ndim == 2,
        kernel=prod(weight.shape[2:]) if convolution else 1,
        aliases=sighting.aliases,
    )
    if reason is None:
        return found
    sentence, optional = reason
    return Refusal(key, sentence, shape=found.shape, offer=found if optional else None)


def _reason(sighting: _Sighting) -> tuple[str, bool] | None:
    """Why a weight with linear uses is left alone, and whether a plan may include it."""
    weight = sighting.parameter
    if not is_weight_dtype(weight):
        return f"has dtype {weight.dtype}, only dense floating-point weights are factorised", False
    if weight.ndim < 2:
        return "has one axis: there is nothing to factorise", False
    if weight.numel() == 0:
        return "is empty", False
    if sighting.refused:
        return sighting.refused[0], False
    if not weight.requires_grad:
        return "is frozen (requires_grad=False): extra parameters would not be trained", False
    if sighting.lookups:
        rows = weight.shape[0]
        return (
            f"is tied to an embedding of {rows} rows: cores would cost a product over the whole "
            "vocabulary in every step (include= takes it all the same)",
            True,
        )
    return None


def _unused(traced: Traced) -> Iterator[Refusal]:
    """Linear and Conv modules: those that a graph reads have a row of their own already."""
    if isinstance(traced.source, ExportedProgram):
        return
    report = module_rows(traced.source)
    for row in report.matches:
        yield Refusal(row.key, "is not read by forward with these inputs", shape=row.shape)
    # A weight that is computed before each use has no Parameter; its sources are refused above.
    known = {name for name, _parameter in traced.source.named_parameters(remove_duplicate=False)}
    yield from (row for row in report.refusals if row.key in known)
